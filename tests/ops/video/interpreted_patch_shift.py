"""Triton's patch_shift in Triton's interpreter; run by test_patch_shift_triton.py."""

from __future__ import annotations

import pytest
import torch

from tests.ops._harness.interpreter import prepared_once
from tests.ops.video._patch_shift_cases import CASES, Case, check, make_inputs, run_backend

__all__ = ["prepared_once"]  # a fixture of all tests here

LARGE = Case(  # more than one chunk in the backward
    name="large", shape=(1, 3, 2, 16, 16), tubelet=2, patch=16, video=torch.float32
)


@pytest.mark.parametrize("case", [*CASES, LARGE], ids=lambda case: case.name)
def test_matches_reference(case):
    inputs = make_inputs(case)
    check(inputs, run_backend(inputs, "triton"))
