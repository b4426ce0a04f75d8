"""Cases of allocation."""

from __future__ import annotations

import torch

from stmeta.ops.memory.allocation import allocation, allocation_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import uniform


def _make(g: torch.Generator, B: int, N: int) -> Arguments:
    return {"usage": uniform(g, B, N)}


def _full(g: torch.Generator, B: int, N: int) -> Arguments:
    """Hardly a free row: the products stay large, and all rows matter."""
    return {"usage": 1 - uniform(g, B, N) / N}


def _ties(g: torch.Generator, B: int, N: int, levels: int) -> Arguments:
    """Few different usages, from 0 to 1; a row of the batch where all are alike."""
    usage = torch.randint(0, levels, (B, N), generator=g).double() / max(levels - 1, 1)
    usage[:1] = 0.5
    return {"usage": usage}


def _extreme(*rows: list[float]) -> Case:
    return Case(name="extreme", make=lambda g: {"usage": torch.tensor(rows, dtype=torch.float64)})


def _sized(batch: int, rows: int, levels: int) -> Case:
    make = (
        (lambda g: _ties(g, batch, rows, levels)) if levels else (lambda g: _full(g, batch, rows))
    )
    return Case(name="any", make=make)


OP = Op(
    name="allocation",
    factor=3.0,
    function=allocation,
    reference=allocation_ref,
    outputs=("allocation",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 128)),
        Case(name="odd", make=lambda g: _make(g, 2, 7)),
        Case(name="full", make=lambda g: _full(g, 3, 77)),
        Case(name="long", make=lambda g: _full(g, 2, 517)),
        Case(name="ties", make=lambda g: _ties(g, 3, 37, 4)),
        Case(name="free_or_used", make=lambda g: _ties(g, 4, 13, 2)),
        _extreme([0.0] * 5, [1.0] * 5, [1.0, 0.0, -0.0, 1.0, 0.5], [1e-4, 6e-5, 1e-4, 0.999, 0.0]),
        Case(name="one_row", make=lambda g: _make(g, 3, 1)),
        Case(name="no_rows", make=lambda g: _make(g, 3, 0)),
        Case(name="empty", make=lambda g: _make(g, 0, 5)),
    ),
    real=(
        Case(name="dnc", make=lambda g: _make(g, 16, 128)),
        Case(name="large", make=lambda g: _full(g, 16, 512)),
        Case(name="huge", make=lambda g: _full(g, 2, 40000)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 5)),
    sizes={"batch": (0, 3), "rows": (0, 70), "levels": (0, 9)},
    sized=_sized,
)
