"""shifted_patch_embed: bytes of video to embedded tokens with positions.

With 10 % of the tokens kept the baseline embeds all tokens and gathers afterwards, as masked
autoencoders usually do; "pixels gathered first" is the case where eager makes only the kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._draw import MEAN, STD, leaf, masking, names, video
from benchmarks._problem import Problem, size
from stmeta.ops import shifted_patch_embed, shifted_patch_embed_ref

OP = "shifted_patch_embed"
BATCH, TOKENS, KEEP = 32, 512, 51
DIM, FEATURES = 192, 2 * 8 * 8 * 5 * 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """32 clips of 16 x 64 x 64, patches of 8 pixels and 2 frames, diagonal shifts, LayerNorm."""

    dtype: torch.dtype = torch.float32
    kept: bool = False
    first: bool = False  # eager gathers pixels
    layout: str = "thwc"


HALF = torch.bfloat16
CASES = {
    "all tokens": Case(),
    "all tokens, bf16": Case(dtype=HALF),
    "10 % kept": Case(kept=True),
    "10 % kept, bf16": Case(kept=True, dtype=HALF),
}
FULL = {
    "all tokens, planar": Case(layout="cthw"),
    "10 % kept, pixels gathered first": Case(kept=True, first=True),
    "10 % kept, pixels gathered first, bf16": Case(kept=True, first=True, dtype=HALF),
}


def _embed_all_then_gather(video: Tensor, *, ids_keep: Tensor, **options: Any) -> Tensor:
    tokens = shifted_patch_embed_ref(video, **options)
    return tokens.gather(1, ids_keep[:, :, None].expand(-1, -1, tokens.shape[2]))


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_shifted_patch_embed(name, device, compare):
    case = (CASES | FULL)[name]
    clips = video(device, BATCH, layout=case.layout)
    arguments = {
        "video": clips,
        "weight": (leaf(device, DIM, FEATURES).detach() / FEATURES**0.5).requires_grad_(),
        "bias": leaf(device, DIM),
        "norm_weight": leaf(device, FEATURES),
        "norm_bias": leaf(device, FEATURES),
        "pos": leaf(device, TOKENS, DIM),
    }
    parameters = size([x for x in arguments.values() if x.requires_grad])
    rest = {"tubelet": 2, "patch": 8, "shifts": "diagonal", "mean": MEAN, "std": STD}
    eager, share = shifted_patch_embed_ref, 1.0
    if case.kept:
        arguments["ids_keep"] = masking(device, BATCH, TOKENS, KEEP)[0]
        eager, share = (eager if case.first else _embed_all_then_gather), KEEP / TOKENS
    problem = Problem(
        eager=eager,
        fused=shifted_patch_embed,
        arguments={**arguments, **rest, "dtype": case.dtype},
        reads=int(size([clips]) * share) + parameters,
    )
    compare(f"small_64, batch 32, {name}", problem)
