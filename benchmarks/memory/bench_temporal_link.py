"""temporal_link: one step of the DNC's links between rows, one write head."""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import names, weights
from benchmarks._problem import Problem
from stmeta.ops import temporal_link, temporal_link_ref

OP = "temporal_link"
CASES = {"B16 N128": (16, 128, torch.float32), "B16 N512": (16, 512, torch.float32)}
FULL = {
    "B16 N128, bf16": (16, 128, torch.bfloat16),
    "B16 N512, bf16": (16, 512, torch.bfloat16),
}


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_temporal_link(name, device, compare):
    batch, rows, dtype = (CASES | FULL)[name]
    arguments = {
        "link": weights(device, batch, 1, rows, rows, dtype=dtype),
        "precedence": weights(device, batch, 1, rows, dtype=dtype),
        "write_weight": weights(device, batch, 1, rows, dtype=dtype),
    }
    compare(name, Problem(eager=temporal_link_ref, fused=temporal_link, arguments=arguments))
