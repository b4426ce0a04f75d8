"""Cases of location_addressing."""

from __future__ import annotations

import torch

from stmeta.ops.memory.location_addressing import location_addressing, location_addressing_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import one_hot, uniform, weights


def _make(g: torch.Generator, B: int, H: int, N: int, S: int) -> Arguments:
    return {
        "content": weights(g, B, H, N),
        "previous": weights(g, B, H, N),
        "gate": uniform(g, B, H),
        "shift": weights(g, B, H, S),
        "sharpen": 1 + 3 * uniform(g, B, H),
    }


def _with(g: torch.Generator, **numbers: float) -> Arguments:
    """Some of the arguments hold one number."""
    arguments = _make(g, 2, 3, 9, 3)
    return arguments | {name: torch.full_like(arguments[name], x) for name, x in numbers.items()}


def _moved(g: torch.Generator) -> Arguments:
    """One-hot weights around the end of the ring: most of the shifted weights are zero."""
    arguments = _with(g, gate=1.0, sharpen=2.0)
    content, shift = torch.zeros_like(arguments["content"]), torch.zeros_like(arguments["shift"])
    content[:, :, -1], shift[:, :, -1] = 1, 1
    return arguments | {"content": content, "shift": shift}


def _nowhere(g: torch.Generator) -> Arguments:
    """Nothing to look at: the weights stay zero."""
    arguments = _with(g, gate=0.0)
    arguments["previous"][:, 1] = 0
    return arguments


def _one_hot(g: torch.Generator, **numbers: float) -> Arguments:
    return _with(g, **numbers) | {"content": one_hot(g, 2, 3, 9), "previous": one_hot(g, 2, 3, 9)}


def _negative(g: torch.Generator, **numbers: float) -> Arguments:
    """A shifted weight below zero counts as zero."""
    shift = torch.tensor([0.8, -0.5, 0.7], dtype=torch.float64)
    return _one_hot(g, **numbers) | {"shift": shift.expand(2, 3, 3)}


def _sized(batch: int, heads: int, rows: int, reach: int) -> Case:
    taps = 1 + 2 * min(reach, (rows - 1) // 2)
    return Case(name="any", make=lambda g: _make(g, batch, heads, rows, taps))


OP = Op(
    name="location_addressing",
    factor=3.0,
    function=location_addressing,
    reference=location_addressing_ref,
    outputs=("weight",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 3, 4, 128, 3)),
        Case(name="five_taps", make=lambda g: _make(g, 2, 3, 7, 5)),
        Case(name="a_tap_for_each_row", make=lambda g: _make(g, 2, 4, 3, 3)),
        Case(name="one_tap", make=lambda g: _make(g, 2, 3, 7, 1)),
        Case(name="one_row", make=lambda g: _make(g, 2, 1, 1, 1)),
        Case(name="long", make=lambda g: _make(g, 1, 2, 517, 7), factor=4),
        Case(name="empty", make=lambda g: _make(g, 0, 2, 5, 3)),
        Case(name="gate_0", make=lambda g: _with(g, gate=0.0)),
        Case(name="gate_1", make=lambda g: _with(g, gate=1.0)),
        Case(name="sharpen_1", make=lambda g: _with(g, sharpen=1.0)),
        Case(name="sharpen_20", make=lambda g: _with(g, sharpen=20.0), factor=4),
        Case(name="moved", make=_moved),
        Case(name="one_hot", make=_one_hot),
        Case(name="one_hot_sharpen_1", make=lambda g: _one_hot(g, sharpen=1.0)),
        Case(name="negative", make=_negative),
        Case(name="negative_sharpen_1", make=lambda g: _negative(g, sharpen=1.0)),
        Case(name="nowhere", make=_nowhere, backward=False),
    ),
    real=(
        Case(name="mann", make=lambda g: _make(g, 16, 4, 128, 3)),
        Case(name="large", make=lambda g: _make(g, 64, 4, 1024, 3)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 2, 5, 3)),
    sizes={"batch": (0, 3), "heads": (1, 5), "rows": (1, 20), "reach": (0, 4)},
    sized=_sized,
    never_zero=("rows",),
)
