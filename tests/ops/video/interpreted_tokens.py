"""Triton's token ops in the interpreter; test_tokens_triton.py runs this in a child process."""

from __future__ import annotations

import pytest
import torch

from tests.ops._harness import TOKEN_OPS, check, in_triton, load, make_inputs, run_backend
from tests.ops._harness.interpreter import prepared_once
from tests.ops.video.test_locality_attention import check_temperature

__all__ = ["prepared_once"]  # a fixture of all tests here

CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}")
    for op in map(load, in_triton(TOKEN_OPS))
    for case in op.cases
]


@pytest.mark.parametrize(("op", "case"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bf16 is wrong there
def test_matches_reference(op, case, dtype):
    if dtype not in op.dtypes:
        pytest.skip(f"{op.name} takes {op.dtypes}")
    inputs = make_inputs(op, case, dtype)
    check(inputs, run_backend(inputs, "triton"), case.factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_of_the_temperature(dtype):
    check_temperature("triton", dtype, True)
