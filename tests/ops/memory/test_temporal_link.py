"""Cases of temporal_link."""

from __future__ import annotations

import torch

from stmeta.ops.memory.temporal_link import temporal_link, temporal_link_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import uniform, weights


def _make(g: torch.Generator, B: int, W: int, N: int, *, write: float = 0.9) -> Arguments:
    other = 1 - torch.eye(N, dtype=torch.float64)
    return {
        "link": weights(g, B, W, N, N) * uniform(g, B, W, N, 1) * other,
        "precedence": 0.8 * weights(g, B, W, N),
        "write_weight": write * weights(g, B, W, N),
    }


def _diagonal(g: torch.Generator) -> Arguments:
    """A diagonal that is not zero: nothing of it is to be seen."""
    arguments = _make(g, 2, 2, 9)
    return arguments | {"link": arguments["link"] + 3 * torch.eye(9, dtype=torch.float64)}


def _sized(batch: int, heads: int, rows: int) -> Case:
    return Case(name="any", make=lambda g: _make(g, batch, heads, rows))


OP = Op(
    name="temporal_link",
    factor=3.0,
    function=temporal_link,
    reference=temporal_link_ref,
    outputs=("link", "precedence"),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 1, 128)),
        Case(name="odd", make=lambda g: _make(g, 2, 3, 7)),
        Case(name="aligned", make=lambda g: _make(g, 2, 2, 48)),
        Case(name="long", make=lambda g: _make(g, 1, 1, 261)),
        Case(name="few_rows", make=lambda g: _make(g, 2, 2, 3)),
        Case(name="one_row", make=lambda g: _make(g, 2, 2, 1)),
        Case(name="no_rows", make=lambda g: _make(g, 2, 2, 0)),
        Case(name="empty", make=lambda g: _make(g, 0, 2, 5)),
        Case(name="idle", make=lambda g: _make(g, 2, 1, 9, write=0.0)),
        Case(name="diagonal", make=_diagonal),
    ),
    real=(
        Case(name="dnc", make=lambda g: _make(g, 16, 1, 128)),
        Case(name="large", make=lambda g: _make(g, 16, 1, 512)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 1, 2, 4)),
    sizes={"batch": (0, 2), "heads": (1, 3), "rows": (0, 40)},
    sized=_sized,
)
