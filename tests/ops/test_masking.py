from __future__ import annotations

import pytest
import torch

from stmeta.ops import Masking, masking_from_keep, random_masking, restore_tokens


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
