"""Cases of locality_attention.

The gradient of the temperature is a sum of N * N terms that cancel, so the common rule does not fit
it: see test_locality_attention.py.
"""

from __future__ import annotations

import torch

from stmeta.ops.locality_attention import locality_attention, locality_attention_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops.cases._draw import normal, uniform


def make(
    g: torch.Generator, B: int, N: int, H: int, E: int, exclude: bool = True, size: float = 1.0
) -> Arguments:
    return {
        "qkv": normal(g, B, N, 3, H, E) * size,
        "temperature": 0.1 + uniform(g, H),
        "exclude_self": exclude,
    }


def _sized(batch: int, tokens: int, heads: int, width: int, exclude: int) -> Case:
    return Case(
        name="any",
        make=lambda g: make(g, batch, tokens, heads, width, exclude > 0),
        fp32=("temperature",),
    )


OP = Op(
    name="locality_attention",
    function=locality_attention,
    reference=locality_attention_ref,
    outputs=("out",),
    constant=("temperature",),
    products=True,
    cases=(
        Case(name="usual", make=lambda g: make(g, 2, 52, 3, 16), fp32=("temperature",)),
        Case(name="plain", make=lambda g: make(g, 1, 40, 2, 32, False), fp32=("temperature",)),
        Case(name="odd", make=lambda g: make(g, 2, 33, 2, 7), fp32=("temperature",)),
        # Logits beyond the range of exp: the largest of a row must be taken out first.
        Case(name="sharp", make=lambda g: make(g, 1, 40, 2, 24, size=3.0), fp32=("temperature",)),
        Case(name="two", make=lambda g: make(g, 2, 2, 1, 4), fp32=("temperature",)),
        Case(name="lone", make=lambda g: make(g, 2, 1, 2, 8), fp32=("temperature",)),
        Case(name="empty", make=lambda g: make(g, 0, 5, 2, 8), fp32=("temperature",)),
    ),
    real=(
        Case(name="small_64", make=lambda g: make(g, 32, 513, 16, 16), fp32=("temperature",)),
        Case(name="base_224", make=lambda g: make(g, 2, 197, 12, 64), fp32=("temperature",)),
    ),
    tiny=Case(name="tiny", make=lambda g: make(g, 1, 3, 2, 2)),
    sizes={
        "batch": (0, 2),
        "tokens": (1, 40),
        "heads": (1, 3),
        "width": (1, 36),
        "exclude": (0, 1),
    },
    sized=_sized,
)
