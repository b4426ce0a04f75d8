"""ntm_step: address, write and read, one step after the other, all four heads reading and writing.

A controller gives each step its own inputs, so every step has its own leaves; gradients go to the
memory, the first weights and all head parameters of all steps.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks._chain import Chain, step_bytes
from benchmarks._draw import LARGE, SMALL, leaf, names, uniform, weights
from stmeta.ops import ntm_step, ntm_step_ref

OP = "ntm_step"
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
    memory, weight, read = step(*state, **inputs, **options)
    return (memory, weight), read


def _chain(device: str, steps: int, B: int, N: int, M: int, H: int, dtype: torch.dtype) -> Chain:
    def inputs():
        return {
            "key": leaf(device, B, H, M, dtype=dtype),
            "strength": uniform(device, 1, 5, B, H, dtype=dtype),
            "gate": uniform(device, 0, 1, B, H, dtype=dtype),
            "shift": weights(device, B, H, 3, dtype=dtype),
            "sharpen": uniform(device, 1, 4, B, H, dtype=dtype),
            "erase": uniform(device, 0, 1, B, H, M, dtype=dtype),
            "add": leaf(device, B, H, M, dtype=dtype),
        }

    return Chain(
        eager=ntm_step_ref,
        fused=ntm_step,
        advance=_advance,
        state=(leaf(device, B, N, M, dtype=dtype), weights(device, B, H, N, dtype=dtype)),
        steps=[inputs() for _ in range(steps)],
        options={"reads": H},
    )


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_ntm_step(name, device, compare):
    steps, B, N, M, H, dtype = (CASES | FULL)[name]
    chain = _chain(device, steps, B, N, M, H, dtype)
    read = [chain.steps[0]["key"]]  # of the same shape
    moved = step_bytes(
        [*chain.state, *chain.steps[0].values()], [*chain.state, *read], [chain.state[1]]
    )
    compare(name, chain.problem(moved))
