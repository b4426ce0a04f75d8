"""lrua_step: MANN's least recently used access, one step after the other, four heads.

Every step has its own leaves; gradients go to the memory, the first weights and all head
parameters of all steps.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks._chain import Chain, step_bytes
from benchmarks._draw import LARGE, SMALL, leaf, names, uniform, weights
from stmeta.ops import lrua_step, lrua_step_ref

OP = "lrua_step"
CASES = {
    "50 steps, B16 N128 M40 H4": (50, *SMALL, torch.float32),
    "4 steps, B64 N1024 M64 H4": (4, *LARGE, torch.float32),
}
FULL = {
    "1 step, B16 N128 M40 H4": (1, *SMALL, torch.float32),
    "50 steps, B16 N128 M40 H4, bf16": (50, *SMALL, torch.bfloat16),
    "4 steps, B64 N1024 M64 H4, bf16": (4, *LARGE, torch.bfloat16),
}


def _advance(step, state, inputs, options):
    memory, usage, weight, read, _ = step(*state, **inputs, **options)
    return (memory, usage, weight), read


def _chain(device: str, steps: int, B: int, N: int, M: int, H: int, dtype: torch.dtype) -> Chain:
    def inputs():
        return {
            "key": leaf(device, B, H, M, dtype=dtype),
            "strength": uniform(device, 1, 5, B, H, dtype=dtype),
            "gate": uniform(device, 0, 1, B, H, dtype=dtype),
            "add": leaf(device, B, H, M, dtype=dtype),
        }

    usage = uniform(device, 0, 3, B, N, dtype=dtype).detach()
    return Chain(
        eager=lrua_step_ref,
        fused=lrua_step,
        advance=_advance,
        state=(leaf(device, B, N, M, dtype=dtype), usage, weights(device, B, H, N, dtype=dtype)),
        steps=[inputs() for _ in range(steps)],
        options={},
    )


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_lrua_step(name, device, compare):
    steps, B, N, M, H, dtype = (CASES | FULL)[name]
    chain = _chain(device, steps, B, N, M, H, dtype)
    weight = chain.state[2]
    read = chain.steps[0]["key"]  # of the same shape
    rows = torch.empty(B, H, dtype=torch.int64, device=device)
    moved = step_bytes(
        [*chain.state, *chain.steps[0].values()], [*chain.state, read, rows], [weight, rows]
    )
    compare(name, chain.problem(moved))
