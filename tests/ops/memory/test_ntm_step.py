"""Cases of ntm_step."""

from __future__ import annotations

import torch

from stmeta.ops.memory.ntm_step import ntm_step, ntm_step_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import normal, one_hot, uniform, weights


def _make(
    g: torch.Generator,
    B: int,
    N: int,
    M: int,
    H: int,
    S: int = 3,
    *,
    reads: int = 1,
    writes: int = 1,
    read_first: bool = True,
) -> Arguments:
    return {
        "memory": normal(g, B, N, M),
        "previous": weights(g, B, H, N),
        "key": normal(g, B, H, M),
        "strength": 1 + 4 * uniform(g, B, H),
        "gate": uniform(g, B, H),
        "shift": weights(g, B, H, S),
        "sharpen": 1 + 3 * uniform(g, B, H),
        "erase": uniform(g, B, writes, M),
        "add": normal(g, B, writes, M),
        "reads": reads,
        "read_first": read_first,
    }


def _both(g: torch.Generator, B: int, N: int, M: int, H: int, read_first: bool) -> Arguments:
    return _make(g, B, N, M, H, reads=H, writes=H, read_first=read_first)


def _edges(g: torch.Generator, read_first: bool, sharpen: float, gate: float) -> Arguments:
    """Zero rows, and a head that erases the whole of one row."""
    arguments = _make(g, 2, 7, 9, 3, reads=2, writes=2, read_first=read_first) | {"eps": 0.1}
    arguments["memory"][:, 2:4] = 0
    arguments["sharpen"] = torch.full_like(arguments["sharpen"], sharpen)
    arguments["gate"] = torch.full_like(arguments["gate"], gate)
    arguments["previous"] = one_hot(g, 2, 3, 7)
    arguments["shift"] = torch.tensor([0.0, 1.0, 0.0]).double().expand(2, 3, 3)
    arguments["erase"] = (arguments["erase"] > 0.3).double()
    return arguments


def _sized(
    batch: int, rows: int, width: int, heads: int, reads: int, writes: int, reach: int, first: int
) -> Case:
    taps = 1 + 2 * min(reach, (rows - 1) // 2)
    options = {"reads": min(reads, heads), "writes": min(writes, heads), "read_first": first > 0}
    return Case(name="any", make=lambda g: _make(g, batch, rows, width, heads, taps, **options))


OP = Op(
    name="ntm_step",
    factor=3.0,
    function=ntm_step,
    reference=ntm_step_ref,
    outputs=("memory", "weight", "read"),
    cases=(
        Case(name="usual", make=lambda g: _both(g, 3, 128, 40, 4, True)),
        Case(name="usual_read_last", make=lambda g: _both(g, 3, 128, 40, 4, False)),
        Case(name="aligned", make=lambda g: _make(g, 2, 40, 64, 4, reads=2, writes=2)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3, 5, reads=2, read_first=False)),
        Case(name="overlap", make=lambda g: _make(g, 2, 7, 7, 3, reads=2, writes=2)),
        Case(name="idle_head", make=lambda g: _make(g, 2, 9, 5, 4, read_first=False)),
        Case(name="one_row", make=lambda g: _make(g, 2, 1, 3, 1, 1)),
        Case(name="few_rows", make=lambda g: _both(g, 5, 3, 33, 1, False)),
        Case(name="empty", make=lambda g: _make(g, 0, 3, 4, 2)),
        Case(name="gate_0", make=lambda g: _edges(g, True, 2.0, 0.0)),
        Case(name="gate_1", make=lambda g: _edges(g, False, 1.0, 1.0)),
        Case(name="sharpen_20", make=lambda g: _edges(g, False, 20.0, 0.5), factor=4),
    ),
    real=(
        Case(name="mann", make=lambda g: _both(g, 16, 128, 40, 4, True)),
        Case(name="large", make=lambda g: _both(g, 64, 1024, 64, 4, False)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 1, 4, 2, 2, reads=2, read_first=False)),
    sizes={
        "batch": (0, 2),
        "rows": (1, 9),
        "width": (2, 20),
        "heads": (1, 4),
        "reads": (1, 4),
        "writes": (1, 4),
        "reach": (0, 3),
        "first": (0, 1),
    },
    sized=_sized,
    never_zero=("rows", "heads"),
)
