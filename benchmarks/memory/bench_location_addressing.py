"""location_addressing: interpolate, shift and sharpen weights over the rows of a memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._draw import memory_names, memory_problem, uniform, weights
from stmeta.ops import location_addressing, location_addressing_ref

OP = "location_addressing"


def _draw(device: str, B: int, N: int, M: int, H: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "content": weights(device, B, H, N, dtype=dtype),
        "previous": weights(device, B, H, N, dtype=dtype),
        "gate": uniform(device, 0, 1, B, H, dtype=dtype),
        "shift": weights(device, B, H, 3, dtype=dtype),
        "sharpen": uniform(device, 1, 4, B, H, dtype=dtype),
    }


@pytest.mark.parametrize("name", memory_names())
def test_location_addressing(name, device, compare):
    compare(name, memory_problem(name, location_addressing_ref, location_addressing, _draw, device))
