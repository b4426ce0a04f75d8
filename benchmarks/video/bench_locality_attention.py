"""locality_attention: encoder and decoder of small_64 in pretraining."""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import leaf, names
from benchmarks._problem import Problem
from stmeta.ops import locality_attention, locality_attention_ref

OP = "locality_attention"
CASES = {
    "encoder, B32 N52 H12 E16": (32, 52, 12, 16, torch.float32),
    "decoder, B8 N513 H16 E16": (8, 513, 16, 16, torch.float32),
}
FULL = {
    "decoder, B32 N513 H16 E16": (32, 513, 16, 16, torch.float32),
    "encoder, B32 N52 H12 E16, bf16": (32, 52, 12, 16, torch.bfloat16),
    "decoder, B32 N513 H16 E16, bf16": (32, 513, 16, 16, torch.bfloat16),
}


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_locality_attention(name, device, compare):
    batch, tokens, heads, width, dtype = (CASES | FULL)[name]
    temperature = torch.full((heads,), width**-0.5, device=device, requires_grad=True)
    qkv = leaf(device, batch, tokens, 3, heads, width, dtype=dtype)
    arguments = {"qkv": qkv, "temperature": temperature}
    problem = Problem(eager=locality_attention_ref, fused=locality_attention, arguments=arguments)
    compare(name, problem)
