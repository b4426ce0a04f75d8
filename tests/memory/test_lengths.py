"""Every memory takes `lengths`, and what stands behind a sequence's end reaches nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stmeta
from stmeta.memory import (
    DNCCell,
    DNCConfig,
    LSTMCell,
    MANNCell,
    MANNConfig,
    NTMCell,
    NTMConfig,
    trace_weights,
)
from stmeta.nn import MANN, NTMMemory

DIM, STEPS = 3, 5
LENGTHS = (3, 0, 5, 1)
SMALL = {"hidden": 6, "rows": 5, "width": 4}
CELLS = {
    "lstm": lambda: LSTMCell(DIM, 6),
    "mann": lambda: MANNCell(DIM, MANNConfig(num_heads=2, **SMALL)),
    "ntm": lambda: NTMCell(DIM, NTMConfig(**SMALL)),
    "feedforward": lambda: NTMCell(DIM, NTMConfig(controller="feedforward", **SMALL)),
    "dnc": lambda: DNCCell(DIM, DNCConfig(read_heads=2, write_heads=2, **SMALL)),
    "dnc, no links": lambda: DNCCell(DIM, DNCConfig(links=False, read_heads=1, **SMALL)),
    "layer of ntm": lambda: NTMMemory(DIM, config=NTMConfig(**SMALL)),
    "layer of mann": lambda: MANN(DIM, config=MANNConfig(num_heads=2, **SMALL)),
}
BACKENDS = ("auto", "eager")


@pytest.fixture(params=CELLS)
def cell(request):
    torch.manual_seed(0)
    return CELLS[request.param]()


@pytest.fixture
def x():
    return torch.randn(len(LENGTHS), STEPS, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_sequence_alone_gives_the_same(cell, x, backend):
    with stmeta.backend(backend):
        y, state = cell(x, lengths=torch.tensor(LENGTHS))
        for row, length in enumerate(LENGTHS):
            alone, end = cell(x[row : row + 1, :length])
            torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=1e-5, atol=1e-6)
            assert not y[row, length:].any()
            for part, own in zip(state, end, strict=True):
                torch.testing.assert_close(part[row : row + 1], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_behind_the_end_reaches_no_gradient(cell, x, backend, poison):
    lengths = torch.tensor(LENGTHS)
    behind = torch.arange(STEPS)[None] >= lengths[:, None]
    grads = []
    for filled in (0.0, poison):
        cell.zero_grad()
        given = x.masked_fill(behind[..., None], filled).requires_grad_()
        with stmeta.backend(backend):
            y, state = cell(given, lengths=lengths)
            (y.square().sum() + sum(part.sum() for part in state)).backward()
        grads.append([given.grad, *(p.grad for p in cell.parameters() if p.grad is not None)])
    for clean, poisoned in zip(*grads, strict=True):
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("name", [name for name in CELLS if name != "lstm" and "layer" not in name])
def test_trace_with_lengths(name, x):
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = CELLS[name]()

        def forward(self, x, lengths=None):
            return self.cell(x, lengths=lengths)[0]

    model = Model()
    trace, whole = trace_weights(model, x, torch.tensor(LENGTHS)), trace_weights(model, x)
    for found, free in zip(trace, whole, strict=True):
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(found[row, :length], free[row, :length])
            assert not found[row, length:].any()


@pytest.mark.parametrize("bad", [[1, 2], [0, 0, 0, 6], [-1, 0, 0, 0]])
def test_lengths_that_do_not_fit(cell, x, bad):
    with pytest.raises(ValueError, match="lengths must be"):
        cell(x, lengths=torch.tensor(bad))


def test_no_steps_and_no_sequences(cell):
    for shape in ((2, 0, DIM), (0, 4, DIM)):
        y, _ = cell(torch.zeros(shape), lengths=torch.zeros(shape[0], dtype=torch.int64))
        assert y.shape[:2] == shape[:2]


def test_bf16_autocast_trains(cell, x):
    """In fp32 but for the products: a step close to that of fp32, and finite gradients."""
    exact, _ = cell(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = cell(x)
        y, _ = cell(x, type(state)(*(part.clone() for part in state)))
        first, _ = cell(x)
    assert (first.float() - exact).abs().max() < 0.1
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in cell.parameters())
