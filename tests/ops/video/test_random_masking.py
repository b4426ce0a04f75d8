"""Cases of random_masking: its noise is given, so that every backend masks the same tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stmeta.ops import masking_from_keep, random_masking, resolve, restore_tokens
from stmeta.ops._core.dispatch import overload
from stmeta.ops.video.random_masking import Masking, random_masking_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import uniform


def _function(
    noise: Tensor, keep: int, units: list[int], grid: list[int], backend: str = "auto"
) -> Masking:
    """What `random_masking` does with its noise."""
    name = resolve("random_masking", noise, backend)
    if name == "eager":
        return random_masking_ref(noise, keep, units, grid)
    return Masking(*overload("random_masking", name)(noise, keep, units, grid))


def _make(
    g: torch.Generator,
    batch: int,
    keep: int,
    units: tuple[int, int],
    grid: tuple[int, int] | None = None,
) -> Arguments:
    return {
        "noise": uniform(g, batch, units[0] * units[1]),
        "keep": keep,
        "units": list(units),
        "grid": list(grid or units),
    }


def _ties(g: torch.Generator, batch: int, keep: int, units: tuple[int, int]) -> Arguments:
    """Three different numbers, zero of both signs among them; and a row where all are alike."""
    arguments = _make(g, batch, keep, units)
    levels = torch.tensor([0.0, -0.0, 0.5, 0.25], dtype=torch.float64)
    noise = levels[torch.randint(4, arguments["noise"].shape, generator=g)]
    noise[0] = 0.5
    return arguments | {"noise": noise}


def _sized(batch: int, frames: int, places: int, keep: int, mode: int) -> Case:
    units = [(frames, places), (1, places), (frames, 1)][mode]
    keep = min(keep, units[0] * units[1])
    return Case(name="any", make=lambda g: _make(g, batch, keep, units, (frames, places)))


OP = Op(
    name="random_masking",
    function=_function,
    reference=random_masking_ref,
    outputs=("ids_keep", "ids_restore", "ids_masked", "mask"),
    constant=("noise",),
    dtypes=(torch.float32,),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 4, 51, (8, 64))),
        Case(name="tube", make=lambda g: _make(g, 3, 6, (1, 64), (8, 64))),
        Case(name="frame", make=lambda g: _make(g, 3, 2, (8, 1), (8, 64))),
        Case(name="odd", make=lambda g: _make(g, 5, 3, (3, 7))),
        Case(name="long", make=lambda g: _make(g, 2, 157, (8, 196))),
        Case(name="longer", make=lambda g: _make(g, 1, 513, (9, 577))),
        Case(name="one_kept", make=lambda g: _make(g, 2, 1, (2, 9))),
        Case(name="all_kept", make=lambda g: _make(g, 2, 18, (2, 9))),
        Case(name="one_token", make=lambda g: _make(g, 2, 1, (1, 1))),
        Case(name="one_tube", make=lambda g: _make(g, 2, 1, (1, 5), (3, 5))),
        Case(name="empty", make=lambda g: _make(g, 0, 2, (2, 4))),
        Case(name="ties", make=lambda g: _ties(g, 3, 11, (4, 9))),
        Case(name="many_ties", make=lambda g: _ties(g, 2, 100, (9, 500))),
    ),
    real=(
        Case(name="small_64", make=lambda g: _make(g, 32, 51, (8, 64))),
        Case(name="base_224", make=lambda g: _make(g, 8, 157, (8, 196))),
        Case(name="ten_thousand", make=lambda g: _make(g, 2, 1000, (16, 625))),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 2, (2, 3))),
    sizes={"batch": (0, 3), "frames": (1, 6), "places": (1, 70), "keep": (1, 60), "mode": (0, 2)},
    sized=_sized,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["random", "tube", "frame"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 0.9])
def test_counts_and_order(mode, ratio):
    frames, place = 8, 20
    keep, restore, _, mask = random_masking(5, 160, ratio, seeded(), mode, frames=frames)
    units = {"random": 160, "tube": place, "frame": frames}[mode]
    expected = max(1, int(units * (1 - ratio) + 1e-6)) * 160 // units
    assert keep.shape == (5, expected)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == 160 - expected).all()
    assert (keep.diff(dim=1) > 0).all()  # ascending, so also unique
    assert not mask.gather(1, keep).any()
    assert torch.equal(restore.sort(1).values, torch.arange(160).expand(5, 160))
    grid = mask.view(5, frames, place)
    if mode == "tube":
        assert (grid == grid[:, :1]).all()
    if mode == "frame":
        assert (grid == grid[:, :, :1]).all()


def test_a_ratio_that_divides_evenly_is_exact():
    # 10 * (1 - 0.9) is 0.99... in floating point.
    assert random_masking(1, 10, 0.9).ids_keep.shape == (1, 1)
    assert random_masking(1, 512, 0.9).ids_keep.shape == (1, 51)


def test_same_generator_same_masks_and_rows_differ():
    a, b = (random_masking(4, 64, 0.75, seeded(7)) for _ in range(2))
    assert torch.equal(a.ids_keep, b.ids_keep)
    assert not torch.equal(a.ids_keep, random_masking(4, 64, 0.75, seeded(8)).ids_keep)
    assert not torch.equal(a.ids_keep[0], a.ids_keep[1])


def test_every_token_is_kept_as_often():
    mask = random_masking(4000, 16, 0.75, seeded()).mask
    share = (~mask).float().mean(0)
    assert (share - 0.25).abs().max() < 0.03  # 4 standard deviations


def test_ids_masked_completes_ids_keep():
    masking = random_masking(3, 24, 0.5, seeded())
    both = torch.cat([masking.ids_keep, masking.ids_masked], 1)
    assert torch.equal(both.sort(1).values, torch.arange(24).expand(3, 24))
    assert torch.equal(both.gather(1, masking.ids_restore), torch.arange(24).expand(3, 24))


def test_restore_round_trip_and_gradients():
    torch.manual_seed(0)
    masking = random_masking(3, 12, 0.6, seeded())
    x = torch.randn(3, 12, 4, dtype=torch.float64)
    kept = x.gather(1, masking.ids_keep[..., None].expand(-1, -1, 4)).requires_grad_()
    token = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    full = restore_tokens(kept, token, masking.ids_restore)
    expected = torch.where(masking.mask[..., None], token, x)
    assert torch.equal(full, expected)
    probe = torch.randn_like(full)
    grad_kept, grad_token = torch.autograd.grad(full, (kept, token), probe)
    index = masking.ids_keep[..., None].expand(-1, -1, 4)
    assert torch.equal(grad_kept, probe.gather(1, index))
    torch.testing.assert_close(grad_token[0, 0], probe[masking.mask].sum(0))


def test_masking_from_keep_keeps_the_given_order():
    ids = torch.tensor([[5, 1, 3], [0, 4, 2]])
    masking = masking_from_keep(ids, 6)
    assert isinstance(masking, Masking)
    assert torch.equal(masking.ids_keep, ids)
    assert masking.mask[0].tolist() == [True, False, True, False, True, False]
    assert masking.ids_masked.tolist() == [[0, 2, 4], [1, 3, 5]]
    both = torch.cat([ids, masking.ids_masked], 1)
    assert torch.equal(both.gather(1, masking.ids_restore), torch.arange(6).expand(2, 6))


def test_masking_from_keep_agrees_with_random_masking():
    drawn = random_masking(4, 32, 0.7, seeded())
    for a, b in zip(drawn, masking_from_keep(drawn.ids_keep, 32), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, r"ratio must be in \[0, 1\), got 1.0"),
        ({"ratio": -0.1}, "ratio must be"),
        ({"frames": 5}, "frames must divide tokens = 64, got 5"),
        ({"mode": "rows"}, "mode must be one of random, tube, frame, got 'rows'"),
    ],
)
def test_errors(arguments, message):
    given = {"ratio": 0.5, "frames": 8} | arguments
    with pytest.raises(ValueError, match=message):
        random_masking(2, 64, given.pop("ratio"), None, given.pop("mode", "random"), **given)
