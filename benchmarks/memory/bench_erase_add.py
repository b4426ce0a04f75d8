"""erase_add: erase, then add, four heads in one pass over the memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._draw import leaf, memory_names, memory_problem, uniform, weights
from stmeta.ops import erase_add, erase_add_ref

OP = "erase_add"


def _draw(device: str, B: int, N: int, M: int, H: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "memory": leaf(device, B, N, M, dtype=dtype),
        "weight": weights(device, B, H, N, dtype=dtype),
        "erase": uniform(device, 0, 1, B, H, M, dtype=dtype),
        "add": leaf(device, B, H, M, dtype=dtype),
    }


@pytest.mark.parametrize("name", memory_names())
def test_erase_add(name, device, compare):
    compare(name, memory_problem(name, erase_add_ref, erase_add, _draw, device))
