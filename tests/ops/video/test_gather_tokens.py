"""Cases of gather_tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops.video.gather_tokens import gather_tokens, gather_tokens_ref, invert_ids
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import choice, normal


def _reference(x: Tensor, ids_keep: Tensor, **options: Any) -> Tensor:
    options.pop("ids_restore", None)  # a hint for the fused backward
    return gather_tokens_ref(x, ids_keep, **options)


def _make(
    g: torch.Generator, B: int, N: int, D: int, K: int, pos: bool = True, restore: bool = True
) -> Arguments:
    ids_keep = choice(g, B, N, K)
    arguments = {"x": normal(g, B, N, D), "ids_keep": ids_keep}
    if pos:
        arguments["pos"] = normal(g, N, D)
    if restore:
        arguments["ids_restore"] = invert_ids(ids_keep, N)
    return arguments


def _permutation(g: torch.Generator) -> Arguments:
    """`ids_restore` as masking gives it: the tokens that are not kept have places above K."""
    order = choice(g, 2, 9, 9)
    return _make(g, 2, 9, 7, 4) | {"ids_keep": order[:, :4], "ids_restore": order.argsort(1)}


def _sized(batch: int, tokens: int, width: int, keep: int, pos: int, restore: int) -> Case:
    keep = min(keep, tokens)
    fp32 = ("pos",) if pos == 2 else ()
    return Case(
        name="any",
        make=lambda g: _make(g, batch, tokens, width, keep, pos > 0, restore > 0),
        fp32=fp32,
    )


OP = Op(
    name="gather_tokens",
    function=gather_tokens,
    reference=_reference,
    outputs=("kept",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 4, 64, 96, 7), fp32=("pos",)),
        Case(name="same_dtype", make=lambda g: _make(g, 3, 49, 64, 5)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3, restore=False), fp32=("pos",)),
        Case(name="no_pos", make=lambda g: _make(g, 2, 9, 33, 4, pos=False)),
        Case(name="constant_pos", make=lambda g: _make(g, 2, 9, 33, 4), constant=("pos",)),
        Case(name="constant_x", make=lambda g: _make(g, 2, 9, 33, 4), constant=("x",)),
        Case(name="permutation", make=_permutation, fp32=("pos",)),
        Case(name="all", make=lambda g: _make(g, 2, 5, 8, 5)),
        Case(name="one", make=lambda g: _make(g, 1, 1, 1, 1)),
        Case(name="none", make=lambda g: _make(g, 2, 5, 8, 0)),
        Case(name="empty", make=lambda g: _make(g, 0, 5, 8, 2), fp32=("pos",)),
    ),
    real=(
        Case(name="small_64", make=lambda g: _make(g, 32, 512, 96, 51), fp32=("pos",)),
        Case(name="base_224", make=lambda g: _make(g, 8, 1568, 512, 157), fp32=("pos",)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 3, 2, 2)),
    sizes={
        "batch": (0, 3),
        "tokens": (1, 9),
        "width": (1, 40),
        "keep": (0, 9),
        "pos": (0, 2),
        "restore": (0, 1),
    },
    sized=_sized,
    shared=("pos",),
)
