"""restore_tokens: kept tokens among mask tokens, in their places, with positions."""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import leaf, masking, names
from benchmarks._problem import Problem, size
from stmeta.ops import restore_tokens, restore_tokens_ref

OP = "restore_tokens"
CASES = {"B32 N512 D96, 90 % masked": (32, 512, 96, 51, torch.float32)}
FULL = {
    "B32 N512 D96, 90 % masked, bf16": (32, 512, 96, 51, torch.bfloat16),
    "B8 N1568 D512, 90 % masked": (8, 1568, 512, 156, torch.float32),
    "B8 N1568 D512, 90 % masked, bf16": (8, 1568, 512, 156, torch.bfloat16),
}


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_restore_tokens(name, device, compare):
    batch, tokens, dim, keep, dtype = (CASES | FULL)[name]
    ids_restore = masking(device, batch, tokens, keep)[2]
    problem = Problem(
        eager=restore_tokens_ref,
        fused=restore_tokens,
        arguments={
            "latent": leaf(device, batch, keep, dim, dtype=dtype),
            "mask_token": leaf(device, dim),
            "ids_restore": ids_restore,
            "pos": leaf(device, tokens, dim),
        },
        saves=size([ids_restore]),
    )
    compare(name, problem)
