"""Cases of erase_add."""

from __future__ import annotations

import torch

from stmeta.ops.memory.erase_add import erase_add, erase_add_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import normal, one_hot, uniform, weights


def _make(g: torch.Generator, B: int, N: int, M: int, W: int) -> Arguments:
    return {
        "memory": normal(g, B, N, M),
        "weight": weights(g, B, W, N),
        "erase": uniform(g, B, W, M),
        "add": normal(g, B, W, M),
    }


def _whole(g: torch.Generator) -> Arguments:
    """w * e is 1 in places, of two heads at once: a backward must not divide by 1 - w * e."""
    arguments = _make(g, 2, 5, 7, 3)
    arguments["weight"] = one_hot(g, 2, 3, 5)
    arguments["weight"][:, 1] = arguments["weight"][:, 0]
    arguments["erase"] = (arguments["erase"] > 0.3).double()
    return arguments


def _sized(batch: int, rows: int, width: int, heads: int) -> Case:
    return Case(name="any", make=lambda g: _make(g, batch, rows, width, heads))


OP = Op(
    name="erase_add",
    function=erase_add,
    reference=erase_add_ref,
    outputs=("memory",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 128, 40, 4)),
        Case(name="aligned", make=lambda g: _make(g, 2, 40, 64, 4)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3)),
        Case(name="one", make=lambda g: _make(g, 1, 1, 1, 1)),
        Case(name="no_rows_to_share", make=lambda g: _make(g, 5, 3, 33, 1)),
        Case(name="empty", make=lambda g: _make(g, 0, 3, 4, 2)),
        Case(name="whole", make=_whole),
    ),
    real=(
        Case(name="mann", make=lambda g: _make(g, 16, 128, 40, 4)),
        Case(name="large", make=lambda g: _make(g, 64, 1024, 64, 4)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 3, 2, 2)),
    sizes={"batch": (0, 3), "rows": (1, 9), "width": (1, 20), "heads": (1, 5)},
    sized=_sized,
)
