"""Cases of random_masking: its noise is given, so that every backend masks the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from stmeta.ops import resolve
from stmeta.ops._dispatch import overload
from stmeta.ops.random_masking import Masking, random_masking_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops.cases._draw import uniform


def _function(
    noise: Tensor, keep: int, units: list[int], grid: list[int], backend: str = "auto"
) -> Masking:
    """What `random_masking` does with its noise."""
    name = resolve("random_masking", noise, backend)
    if name == "eager":
        return random_masking_ref(noise, keep, units, grid)
    return Masking(*overload("random_masking", name)(noise, keep, units, grid))


def _make(
    g: torch.Generator,
    batch: int,
    keep: int,
    units: tuple[int, int],
    grid: tuple[int, int] | None = None,
) -> Arguments:
    return {
        "noise": uniform(g, batch, units[0] * units[1]),
        "keep": keep,
        "units": list(units),
        "grid": list(grid or units),
    }


def _ties(g: torch.Generator, batch: int, keep: int, units: tuple[int, int]) -> Arguments:
    """Three different numbers, zero of both signs among them; and a row where all are alike."""
    arguments = _make(g, batch, keep, units)
    levels = torch.tensor([0.0, -0.0, 0.5, 0.25], dtype=torch.float64)
    noise = levels[torch.randint(4, arguments["noise"].shape, generator=g)]
    noise[0] = 0.5
    return arguments | {"noise": noise}


def _sized(batch: int, frames: int, places: int, keep: int, mode: int) -> Case:
    units = [(frames, places), (1, places), (frames, 1)][mode]
    keep = min(keep, units[0] * units[1])
    return Case(name="any", make=lambda g: _make(g, batch, keep, units, (frames, places)))


OP = Op(
    name="random_masking",
    function=_function,
    reference=random_masking_ref,
    outputs=("ids_keep", "ids_restore", "ids_masked", "mask"),
    constant=("noise",),
    dtypes=(torch.float32,),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 4, 51, (8, 64))),
        Case(name="tube", make=lambda g: _make(g, 3, 6, (1, 64), (8, 64))),
        Case(name="frame", make=lambda g: _make(g, 3, 2, (8, 1), (8, 64))),
        Case(name="odd", make=lambda g: _make(g, 5, 3, (3, 7))),
        Case(name="long", make=lambda g: _make(g, 2, 157, (8, 196))),
        Case(name="longer", make=lambda g: _make(g, 1, 513, (9, 577))),
        Case(name="one_kept", make=lambda g: _make(g, 2, 1, (2, 9))),
        Case(name="all_kept", make=lambda g: _make(g, 2, 18, (2, 9))),
        Case(name="one_token", make=lambda g: _make(g, 2, 1, (1, 1))),
        Case(name="one_tube", make=lambda g: _make(g, 2, 1, (1, 5), (3, 5))),
        Case(name="empty", make=lambda g: _make(g, 0, 2, (2, 4))),
        Case(name="ties", make=lambda g: _ties(g, 3, 11, (4, 9))),
        Case(name="many_ties", make=lambda g: _ties(g, 2, 100, (9, 500))),
    ),
    real=(
        Case(name="small_64", make=lambda g: _make(g, 32, 51, (8, 64))),
        Case(name="base_224", make=lambda g: _make(g, 8, 157, (8, 196))),
        Case(name="ten_thousand", make=lambda g: _make(g, 2, 1000, (16, 625))),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 2, (2, 3))),
    sizes={"batch": (0, 3), "frames": (1, 6), "places": (1, 70), "keep": (1, 60), "mode": (0, 2)},
    sized=_sized,
)
