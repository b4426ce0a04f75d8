"""Cases of lrua_step."""

from __future__ import annotations

from typing import Any

import torch

from stmeta.ops.memory.lrua_step import lrua_step, lrua_step_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import normal, uniform, weights


def _make(g: torch.Generator, B: int, N: int, M: int, R: int, **options: Any) -> Arguments:
    return {
        "memory": normal(g, B, N, M),
        "usage": 3 * uniform(g, B, N),
        "previous": weights(g, B, R, N),
        "key": normal(g, B, R, M),
        "strength": 1 + 4 * uniform(g, B, R),
        "gate": uniform(g, B, R),
        "add": normal(g, B, R, M),
        **options,
    }


def _ties(g: torch.Generator, **options: Any) -> Arguments:
    """Few different usages: the lower row goes first, also where all are alike."""
    arguments = _make(g, 3, 37, 6, 4, **options)
    arguments["usage"] = torch.randint(0, 3, (3, 37), generator=g).double()
    arguments["usage"][0] = 0
    return arguments


def _gates(g: torch.Generator, gate: float) -> Arguments:
    """Zero rows too; `eps` keeps their gradients in bounds."""
    arguments = _make(g, 2, 9, 7, 3, read_first=False, eps=0.1)
    arguments["gate"] = torch.full_like(arguments["gate"], gate)
    arguments["memory"][:, 4:6] = 0
    return arguments


def _sized(batch: int, rows: int, width: int, heads: int, first: int, shared: int) -> Case:
    options = {"read_first": first > 0, "shared": shared > 0, "eps": 0.01}
    heads = min(heads, rows)
    return Case(name="any", make=lambda g: _make(g, batch, rows, width, heads, **options))


OP = Op(
    name="lrua_step",
    factor=3.0,
    function=lrua_step,
    reference=lrua_step_ref,
    outputs=("memory", "usage", "weight", "read", "rows"),
    constant=("usage",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 128, 40, 4)),
        Case(name="usual_read_last", make=lambda g: _make(g, 3, 128, 40, 4, read_first=False)),
        Case(name="shared", make=lambda g: _make(g, 2, 40, 64, 4, shared=True)),
        Case(
            name="shared_read_last",
            make=lambda g: _make(g, 2, 7, 7, 3, shared=True, read_first=False),
        ),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3, decay=0.5)),
        Case(name="every_row", make=lambda g: _make(g, 2, 3, 5, 3)),
        Case(name="one_row", make=lambda g: _make(g, 2, 1, 3, 1)),
        Case(name="empty", make=lambda g: _make(g, 0, 3, 4, 2)),
        Case(name="ties", make=_ties),
        Case(name="ties_shared", make=lambda g: _ties(g, shared=True, read_first=False, eps=0.1)),
        Case(name="gate_0", make=lambda g: _gates(g, 0.0)),
        Case(name="gate_1", make=lambda g: _gates(g, 1.0)),
    ),
    real=(
        Case(name="mann", make=lambda g: _make(g, 16, 128, 40, 4)),
        Case(name="large", make=lambda g: _make(g, 64, 1024, 64, 4, read_first=False)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 1, 4, 2, 2, read_first=False, eps=0.1)),
    sizes={
        "batch": (0, 2),
        "rows": (1, 9),
        "width": (2, 20),
        "heads": (1, 4),
        "first": (0, 1),
        "shared": (0, 1),
    },
    sized=_sized,
    never_zero=("rows",),
)
