"""allocation: the DNC's weights over free rows, usages spread evenly."""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import names, uniform
from benchmarks._problem import Problem
from stmeta.ops import allocation, allocation_ref

OP = "allocation"
CASES = {"B16 N128": (16, 128, torch.float32), "B16 N512": (16, 512, torch.float32)}
FULL = {"B16 N512, bf16": (16, 512, torch.bfloat16), "B64 N4096": (64, 4096, torch.float32)}


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_allocation(name, device, compare):
    batch, rows, dtype = (CASES | FULL)[name]
    arguments = {"usage": uniform(device, 0, 1, batch, rows, dtype=dtype)}
    compare(name, Problem(eager=allocation_ref, fused=allocation, arguments=arguments))
