"""patch_shift: bytes of video to normalised tokens of shifted patches.

The eager baseline is one pass of `torch.stack` over views. Where tokens are masked it makes all of
them and gathers afterwards, the usual way; "pixels gathered first" is the case where it makes only
the kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._draw import MEAN, STD, leaf, masking, names, video
from benchmarks._problem import Problem, size
from stmeta.ops import patch_shift, patch_shift_ref

OP = "patch_shift"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call on uint8 video of 16 frames, LayerNorm and diagonal shifts included."""

    batch: int = 32
    side: int = 64
    patch: int = 8
    layout: str = "thwc"  # memory order, what the loader delivers; or "cthw"
    kept: float = 1.0
    first: bool = False  # eager gathers pixels
    dtype: torch.dtype = torch.float32


CASES = {
    "small_64, batch 32": Case(),
    "small_64, batch 32, 10 % kept": Case(kept=0.1),
}
FULL = {
    "small_64, batch 32, planar": Case(layout="cthw"),
    "small_64, batch 32, bf16": Case(dtype=torch.bfloat16),
    "small_64, batch 32, 10 % kept, pixels gathered first": Case(kept=0.1, first=True),
    "base_224, batch 2": Case(batch=2, side=224, patch=16),
}


def _make_all_then_gather(video: Tensor, *, ids_keep: Tensor, **options: Any) -> Tensor:
    tokens = patch_shift_ref(video, **options)
    return tokens.gather(1, ids_keep[:, :, None].expand(-1, -1, tokens.shape[2]))


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_patch_shift(name, device, compare):
    case = (CASES | FULL)[name]
    clips = video(device, case.batch, case.side, case.layout)
    features = 2 * case.patch**2 * 5 * 3
    arguments = {
        "video": clips,
        "norm_weight": leaf(device, features),
        "norm_bias": leaf(device, features),
        **{"tubelet": 2, "patch": case.patch, "mean": MEAN, "std": STD, "dtype": case.dtype},
    }
    eager = patch_shift_ref
    if case.kept < 1:
        tokens = 8 * (case.side // case.patch) ** 2
        ids = masking(device, case.batch, tokens, round(tokens * case.kept))[0]
        arguments["ids_keep"] = ids
        eager = eager if case.first else _make_all_then_gather
    problem = Problem(
        eager=eager,
        fused=patch_shift,
        arguments=arguments,
        reads=int(size([clips]) * case.kept),
    )
    compare(name, problem)
