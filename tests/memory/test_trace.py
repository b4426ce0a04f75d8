"""trace_weights: a memory tells where it reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stmeta.memory import (
    DNCCell,
    DNCConfig,
    MANNCell,
    MANNConfig,
    NTMCell,
    NTMConfig,
    trace_weights,
)
from stmeta.models.few_shot import FewShotClassifier, FewShotClassifierConfig
from stmeta.models.sequence import SequenceModel

CELLS = {
    "mann": lambda: MANNCell(5, MANNConfig(hidden=9, rows=7, width=4, num_heads=2)),
    "ntm": lambda: NTMCell(5, NTMConfig(hidden=9, rows=7, width=4, read_heads=2)),
    "dnc": lambda: DNCCell(5, DNCConfig(hidden=9, rows=7, width=4, read_heads=2)),
}


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_weights_of_every_step(make):
    torch.manual_seed(0)
    cell = make()
    x = torch.randn(3, 6, 5)
    trace = trace_weights(SequenceModel(cell, 2), x)
    assert trace.read.shape == trace.write.shape == (3, 6, 7)
    state = cell.initial_state(3)
    for t in range(6):
        _, state = cell(x[:, t : t + 1], state)
    weights = getattr(state, "read_weights", None)
    last = state.weights[:, :2] if weights is None else weights
    torch.testing.assert_close(trace.read[:, -1], last.sum(1))
    assert (trace.write > -1e-6).all()


def test_manns_writes_are_those_of_the_paper():
    """A gate wide open to the least used rows: every head writes one row, with weight one."""
    torch.manual_seed(0)
    cell = MANNCell(5, MANNConfig(hidden=9, rows=7, width=4, num_heads=2))
    with torch.no_grad():
        cell.interface.weight.zero_()
        cell.interface.bias.view(2, -1)[:, -1] = -100.0
    write = trace_weights(cell, torch.randn(1, 3, 5)).write
    torch.testing.assert_close(write.sort(descending=True).values[0, :, :2], torch.ones(3, 2))
    torch.testing.assert_close(write.sum(2), torch.full((1, 3), 2.0))


def test_what_the_model_adds_to_keys_counts():
    torch.manual_seed(0)
    config = FewShotClassifierConfig(memory=MANNConfig(hidden=8, rows=6, width=8, num_heads=2))
    model = FewShotClassifier(4, 3, config).eval()
    label = torch.tensor([[0, 1, 0, 2]])
    x = torch.randn(1, 4, 4)
    trace = trace_weights(model, x, label)
    other = trace_weights(model, -x, label)
    assert (trace.read[:, 1:] - other.read[:, 1:]).abs().max() > 1e-3


def test_one_memory_called_once():
    with pytest.raises(ValueError, match="must hold one memory with rows, got 0"):
        trace_weights(nn.Linear(2, 2), torch.randn(1, 2))
    cell = CELLS["mann"]()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            return self.cell(x)[0] + self.cell(x)[0]

    with pytest.raises(ValueError, match="must call its memory once, got 2"):
        trace_weights(Twice(), torch.randn(1, 2, 5))
