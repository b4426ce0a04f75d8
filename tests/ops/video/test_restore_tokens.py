"""Cases of restore_tokens."""

from __future__ import annotations

import torch

from stmeta.ops.video.restore_tokens import restore_tokens, restore_tokens_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import choice, normal

FP32 = ("mask_token", "pos")


def _make(g: torch.Generator, B: int, N: int, D: int, K: int, pos: bool = True) -> Arguments:
    arguments = {
        "latent": normal(g, B, K, D),
        "mask_token": normal(g, D),
        "ids_restore": choice(g, B, N, N),
    }
    return arguments | ({"pos": normal(g, N, D)} if pos else {})


def _sized(batch: int, tokens: int, width: int, keep: int, pos: int, fp32: int) -> Case:
    keep = min(keep, tokens)
    names = [(), ("mask_token",), ("pos",), FP32][fp32]
    return Case(
        name="any", make=lambda g: _make(g, batch, tokens, width, keep, pos > 0), fp32=names
    )


OP = Op(
    name="restore_tokens",
    function=restore_tokens,
    reference=restore_tokens_ref,
    outputs=("tokens",),
    cases=(
        Case(name="usual", make=lambda g: _make(g, 4, 64, 96, 7), fp32=FP32),
        Case(name="same_dtype", make=lambda g: _make(g, 3, 49, 64, 5)),
        Case(name="odd", make=lambda g: _make(g, 2, 7, 7, 3), fp32=("pos",)),
        Case(name="no_pos", make=lambda g: _make(g, 2, 9, 33, 4, pos=False), fp32=FP32),
        Case(name="constant_pos", make=lambda g: _make(g, 2, 9, 33, 4), constant=("pos",)),
        Case(name="constant_latent", make=lambda g: _make(g, 2, 9, 33, 4), constant=("latent",)),
        Case(name="only_latent", make=lambda g: _make(g, 2, 9, 33, 4), constant=FP32),
        Case(name="all", make=lambda g: _make(g, 2, 5, 8, 5)),
        Case(name="one", make=lambda g: _make(g, 1, 1, 1, 1)),
        Case(name="none", make=lambda g: _make(g, 2, 5, 8, 0), fp32=FP32),
        Case(name="empty", make=lambda g: _make(g, 0, 5, 8, 2)),
    ),
    real=(
        Case(name="small_64", make=lambda g: _make(g, 32, 512, 96, 51), fp32=FP32),
        Case(name="base_224", make=lambda g: _make(g, 8, 1568, 512, 157), fp32=FP32),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, 2, 3, 2, 2)),
    sizes={
        "batch": (0, 3),
        "tokens": (1, 9),
        "width": (1, 40),
        "keep": (0, 9),
        "pos": (0, 1),
        "fp32": (0, 3),
    },
    sized=_sized,
    shared=("mask_token", "pos"),
)
