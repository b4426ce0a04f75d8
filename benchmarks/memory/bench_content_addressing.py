"""content_addressing: cosine, strength and softmax over the rows of a memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._draw import leaf, memory_names, memory_problem, uniform
from stmeta.ops import content_addressing, content_addressing_ref

OP = "content_addressing"


def _draw(device: str, B: int, N: int, M: int, H: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "memory": leaf(device, B, N, M, dtype=dtype),
        "key": leaf(device, B, H, M, dtype=dtype),
        "strength": uniform(device, 1, 5, B, H, dtype=dtype),
    }


@pytest.mark.parametrize("name", memory_names())
def test_content_addressing(name, device, compare):
    compare(name, memory_problem(name, content_addressing_ref, content_addressing, _draw, device))
