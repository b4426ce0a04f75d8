from __future__ import annotations

import pytest
import torch

from stmeta.nn import Block, DropPath, SeparablePositions, ShiftedPatchTokenization
from stmeta.nn.positions import sincos_1d, sincos_2d
from stmeta.ops.video.patch_shift import patch_shift_ref


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    per_sample = y.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(float(y.mean()) - 1) < 0.04
    assert drop.eval()(x) is x


def test_drop_path_rejects_a_rate_of_one():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_block_is_the_textbook_sum():
    torch.manual_seed(0)
    block = Block(8, heads=2, head_dim=4, mlp_ratio=3.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    middle = x + block.attn(block.norm1(x))
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(middle)))
    assert hidden.shape[-1] == 24
    torch.testing.assert_close(block(x), middle + block.mlp.fc2(hidden))


@pytest.mark.parametrize("kind", ["learned", "sincos"])
def test_positions_are_space_plus_time(kind):
    positions = SeparablePositions((2, 3, 4), 8, kind=kind)
    zero = torch.zeros(1, 24, 8)
    with torch.no_grad():
        table = positions(zero)[0].view(2, 3, 4, 8)
    for t, y, x in [(0, 0, 0), (1, 2, 3), (1, 0, 2)]:
        expected = positions.time[t] + positions.space[y * 4 + x]
        torch.testing.assert_close(table[t, y, x], expected.detach())
    assert (positions.cls is None) == (kind == "sincos")
    assert len(list(positions.parameters())) == (3 if kind == "learned" else 0)
    assert len(positions.state_dict()) == (3 if kind == "learned" else 0)


def test_positions_of_kept_tokens_and_their_gradient():
    torch.manual_seed(0)
    positions = SeparablePositions((2, 2, 2), 4).double()
    tokens = torch.randn(3, 8, 4, dtype=torch.float64)
    ids = torch.stack([torch.randperm(8)[:5] for _ in range(3)])
    index = ids[..., None].expand(-1, -1, 4)
    ours = positions(tokens.gather(1, index), ids)
    plain = positions(tokens).gather(1, index)
    assert torch.equal(ours, plain)
    probe = torch.randn_like(ours)
    tables = [positions.space, positions.time]
    for a, b in zip(
        torch.autograd.grad(ours, tables, probe),
        torch.autograd.grad(plain, tables, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_positions_need_all_tokens_without_ids():
    with pytest.raises(ValueError, match="N = 8"):
        SeparablePositions((2, 2, 2), 4)(torch.zeros(1, 5, 4))


def test_sincos_tables():
    table = sincos_1d(torch.tensor([0, 3]), 4)
    angles = torch.tensor([3.0, 0.03])
    torch.testing.assert_close(table[0], torch.tensor([0.0, 0, 1, 1]))
    torch.testing.assert_close(table[1], torch.cat([angles.sin(), angles.cos()]))
    grid = sincos_2d(3, 5, 8).view(3, 5, 8)
    assert torch.equal(grid[1, 2, :4], grid[2, 2, :4])  # x in the first half
    assert torch.equal(grid[1, 2, 4:], grid[1, 4, 4:])  # y in the second
    assert grid.flatten(0, 1).unique(dim=0).shape[0] == 15
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_2d(2, 2, 6)
    with pytest.raises(ValueError, match="must be even, got 3"):
        sincos_1d(torch.arange(2), 3)


@pytest.mark.parametrize(("shifts", "norm", "count"), [("diagonal", True, 5), ("none", False, 1)])
def test_tokenization_is_patch_shift_and_a_linear(shifts, norm, count):
    torch.manual_seed(0)
    module = ShiftedPatchTokenization(
        6, tubelet=2, patch=4, shifts=shifts, norm=norm, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    assert module.proj.in_features == 2 * 4 * 4 * 3 * count
    if norm:
        torch.nn.init.normal_(module.norm.weight)
        torch.nn.init.normal_(module.norm.bias)
    video = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    tokens = patch_shift_ref(
        video.double() / 255,
        tubelet=2,
        patch=4,
        shifts=shifts,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )
    if norm:
        tokens = torch.nn.functional.layer_norm(
            tokens, tokens.shape[-1:], module.norm.weight.double(), module.norm.bias.double(), 1e-5
        )
    exact = tokens @ module.proj.weight.double().T + module.proj.bias.double()
    torch.testing.assert_close(module(video).double(), exact, rtol=1e-4, atol=1e-4)
    assert sorted(k for k, _ in module.named_parameters()) == sorted(
        ["proj.weight", "proj.bias", *(["norm.weight", "norm.bias"] if norm else [])]
    )


def test_tokenization_with_temporal_shifts():
    module = ShiftedPatchTokenization(6, tubelet=2, patch=4, temporal=True)
    assert module.shifts[-2:] == ((-1, 0, 0), (1, 0, 0))
    assert module(torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8)).shape == (1, 8, 6)


def test_tokens_come_in_the_autocast_dtype(monkeypatch):
    from stmeta.nn import spt

    seen = []
    original = spt.shifted_patch_embed
    monkeypatch.setattr(
        spt, "shifted_patch_embed", lambda *a, **k: seen.append(k["dtype"]) or original(*a, **k)
    )
    module = ShiftedPatchTokenization(6, tubelet=2, patch=4)
    video = torch.randint(0, 256, (1, 3, 4, 8, 8), dtype=torch.uint8)
    exact = module(video)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(video)
    assert seen == [torch.float32, torch.bfloat16]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
