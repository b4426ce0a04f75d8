"""memory_read: weighted sums of the rows of a memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._draw import leaf, memory_names, memory_problem, weights
from stmeta.ops import memory_read, memory_read_ref

OP = "memory_read"


def _draw(device: str, B: int, N: int, M: int, H: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "memory": leaf(device, B, N, M, dtype=dtype),
        "weight": weights(device, B, H, N, dtype=dtype),
    }


@pytest.mark.parametrize("name", memory_names())
def test_memory_read(name, device, compare):
    compare(name, memory_problem(name, memory_read_ref, memory_read, _draw, device))
