"""Cases of content_addressing."""

from __future__ import annotations

import torch

from stmeta.ops.memory.content_addressing import content_addressing, content_addressing_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import normal, uniform


def _make(g: torch.Generator, B: int, N: int, M: int, H: int, **options: float) -> Arguments:
    return {
        "memory": normal(g, B, N, M),
        "key": normal(g, B, H, M),
        "strength": 1 + 4 * uniform(g, B, H),
        **options,
    }


def _zero_rows(g: torch.Generator, **options: float) -> Arguments:
    arguments = _make(g, 2, 7, 9, 3, **options)
    arguments["memory"][:, 2:4] = 0
    return arguments


def _zero_key(g: torch.Generator, **options: float) -> Arguments:
    arguments = _make(g, 2, 7, 9, 3, **options)
    arguments["key"][:, 1] = 0
    return arguments


def _found(g: torch.Generator) -> Arguments:
    """Each key is a row of the memory, and the strength leaves no doubt; one head has none."""
    arguments = _make(g, 2, 7, 9, 3)
    arguments["key"] = arguments["memory"][:, 2:5].clone()
    arguments["strength"] = torch.tensor([50.0, 0.0, 20.0], dtype=torch.float64).expand(2, 3)
    return arguments


def _sized(batch: int, rows: int, width: int, heads: int) -> Case:
    return Case(name="any", make=lambda g: _make(g, batch, rows, width, heads))


OP = Op(
    name="content_addressing",
    function=content_addressing,
    reference=content_addressing_ref,
    outputs=("weight",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 128, 40, 4)),
        Case(name="aligned", make=lambda g: _make(g, 2, 40, 64, 4)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3)),
        Case(name="one_row", make=lambda g: _make(g, 2, 1, 5, 1)),
        Case(name="few_rows", make=lambda g: _make(g, 5, 3, 33, 1)),
        Case(name="empty", make=lambda g: _make(g, 0, 3, 4, 2)),
        Case(name="zero_rows", make=_zero_rows),
        Case(name="zero_rows_large_eps", make=lambda g: _zero_rows(g, eps=0.5)),
        Case(name="zero_key", make=_zero_key),
        Case(name="zero_key_large_eps", make=lambda g: _zero_key(g, eps=0.5)),
        Case(name="found", make=_found),
    ),
    real=(
        Case(name="mann", make=lambda g: _make(g, 16, 128, 40, 4)),
        Case(name="large", make=lambda g: _make(g, 64, 1024, 64, 4)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 3, 2, 2, eps=0.1)),
    sizes={"batch": (0, 3), "rows": (1, 9), "width": (2, 20), "heads": (1, 5)},
    sized=_sized,
)
