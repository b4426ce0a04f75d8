"""Memories as layers: what the cells compute, in a shape that any encoder fits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from stmeta.memory import MANNConfig, NTMConfig
from stmeta.nn import MANN, NTMMemory

CONFIGS = {
    "NTMMemory": (NTMMemory, NTMConfig(hidden=10, rows=6, width=4, read_heads=2)),
    "MANN": (MANN, MANNConfig(hidden=10, rows=6, width=4, num_heads=2)),
}
WIDTH = 10 + 2 * 4


@pytest.fixture(params=CONFIGS)
def make(request):
    torch.manual_seed(0)
    kind, config = CONFIGS[request.param]
    return lambda *args: kind(*args, config=config)


def test_shapes_and_names(make):
    x = torch.randn(3, 5, 7)
    plain, projected = make(7), make(7, 12)
    assert plain.out_dim == WIDTH and plain(x)[0].shape == (3, 5, WIDTH)
    assert projected.out_dim == 12 and projected(x)[0].shape == (3, 5, 12)
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"cell"}
    names = {name for name, _ in projected.named_parameters() if not name.startswith("cell.")}
    assert names == {"proj.weight", "proj.bias"}
    y, state = projected.cell(x)
    torch.testing.assert_close(projected(x)[0], projected.proj(y), rtol=0, atol=0)
    torch.testing.assert_close(projected(x)[1], state, rtol=0, atol=0)
    assert projected(x[:, :0])[0].shape == (3, 0, 12)


def test_a_sequence_in_parts(make):
    layer, x = make(7, 12).double(), torch.randn(3, 6, 7, dtype=torch.float64)
    whole, end = layer(x)
    first, state = layer(x[:, :4])
    second, last = layer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)


def test_it_remembers(make):
    """The last output depends on the first step; without a state, nothing is left of a sequence."""
    layer, x = make(7, 12), torch.randn(3, 6, 7, requires_grad=True)
    layer(x)[0][:, -1].square().sum().backward()
    assert x.grad is not None and x.grad[:, 0].abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    torch.testing.assert_close(layer(x)[0], layer(x)[0], rtol=0, atol=0)


def test_lengths():
    torch.manual_seed(0)
    layer, x = MANN(7, 12, config=CONFIGS["MANN"][1]), torch.randn(2, 5, 7)
    y, state = layer(x, lengths=torch.tensor([5, 3]))
    short, end = layer(x[1:, :3])
    torch.testing.assert_close(y[1:, :3], short)
    torch.testing.assert_close([part[1:] for part in state], list(end))


def test_copies_and_autocast(make):
    layer, x = make(7, 12), torch.randn(3, 5, 7)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    expected = layer(x)[0]
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        low, state = nn.Sequential(nn.Linear(7, 7), layer)(x)
    assert low.dtype == torch.bfloat16 and state.memory.dtype == torch.float32


def test_errors(make):
    name = type(make(7)).__name__
    with pytest.raises(ValueError, match=f"{name}: out_dim must be at least 1, or None, got 0"):
        make(7, 0)
    with pytest.raises(ValueError, match=r"Cell: x must be \[B, T, 7\], got \[3, 5, 6\]"):
        make(7)(torch.randn(3, 5, 6))
