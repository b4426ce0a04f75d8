"""Cases of memory_read."""

from __future__ import annotations

import torch

from stmeta.ops.memory.memory_read import memory_read, memory_read_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import normal, one_hot, weights


def _make(g: torch.Generator, B: int, N: int, M: int, H: int) -> Arguments:
    return {"memory": normal(g, B, N, M), "weight": weights(g, B, H, N)}


def _sized(batch: int, rows: int, width: int, heads: int) -> Case:
    return Case(name="any", make=lambda g: _make(g, batch, rows, width, heads))


OP = Op(
    name="memory_read",
    function=memory_read,
    reference=memory_read_ref,
    outputs=("read",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 128, 40, 4)),
        Case(name="aligned", make=lambda g: _make(g, 2, 40, 64, 4)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3)),
        Case(name="one", make=lambda g: _make(g, 1, 1, 1, 1)),
        Case(name="few_rows", make=lambda g: _make(g, 5, 3, 33, 1)),
        Case(name="many_heads", make=lambda g: _make(g, 1, 9, 17, 11)),
        Case(name="empty", make=lambda g: _make(g, 0, 3, 4, 2)),
        Case(
            name="one_row_each",
            make=lambda g: _make(g, 2, 9, 7, 3) | {"weight": one_hot(g, 2, 3, 9)},
        ),
    ),
    real=(
        Case(name="mann", make=lambda g: _make(g, 16, 128, 40, 4)),
        Case(name="large", make=lambda g: _make(g, 64, 1024, 64, 4)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 3, 2, 2)),
    sizes={"batch": (0, 3), "rows": (1, 9), "width": (1, 20), "heads": (1, 5)},
    sized=_sized,
)
