"""gather_tokens: the kept tokens with their positions."""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import leaf, masking, names
from benchmarks._problem import Problem, size
from stmeta.ops import gather_tokens, gather_tokens_ref

OP = "gather_tokens"
CASES = {"B32 N512 D96, 90 % masked": (32, 512, 96, 51, torch.float32)}
FULL = {
    "B32 N512 D96, 90 % masked, bf16": (32, 512, 96, 51, torch.bfloat16),
    "B8 N1568 D512, 90 % masked": (8, 1568, 512, 156, torch.float32),
    "B8 N1568 D512, 90 % masked, bf16": (8, 1568, 512, 156, torch.bfloat16),
}


def _eager(x, ids_keep, pos, ids_restore):
    return gather_tokens_ref(x, ids_keep, pos=pos)


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_gather_tokens(name, device, compare):
    batch, tokens, dim, keep, dtype = (CASES | FULL)[name]
    ids_keep, _, ids_restore = masking(device, batch, tokens, keep)
    x, pos = leaf(device, batch, tokens, dim, dtype=dtype), leaf(device, tokens, dim)
    problem = Problem(
        eager=_eager,
        fused=gather_tokens,
        arguments={"x": x, "ids_keep": ids_keep, "pos": pos, "ids_restore": ids_restore},
        reads=size([ids_keep, pos]) + size([x]) * keep // tokens,
        saves=size([ids_restore]),
    )
    compare(name, problem)
