"""What the forward and the backward of Triton's ntm_scan share; see ntm_scan.py."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._common import blocks_of


@triton.jit
def spread(
    x, i, live, gates_ptr, sharpens_ptr, shifts_ptr,  # in: numbers i; out: [A] x2, [A, S]
    width,
    A: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """What `locate` reads of the heads, to where each kind lies side by side."""
    a, j = i // PER_HEAD, i % PER_HEAD - width
    live = live & (a < A)
    tl.store(sharpens_ptr + a, 1.0 + x, mask=live & (j == 1))
    tl.store(gates_ptr + a, x, mask=live & (j == 2))
    tl.store(shifts_ptr + a * S + j - 3, x, mask=live & (j >= 3))


def constants_of(
    memory: torch.Tensor, recurrent: torch.Tensor, interface: torch.Tensor,
    weights: torch.Tensor, hidden: int, read: int, options: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """Constants of both kernels; a ValueError where a program cannot keep the memory."""
    heads, width = weights.shape[1], memory.shape[2]
    blocks = blocks_of("ntm_scan", heads, memory, hidden, recurrent, interface)
    taps, read_first, tanh_key, tanh_add, _ = options
    return {
        "A": heads,
        "R": read // width,
        "W": heads - read // width,
        "S": taps,
        "PER_HEAD": width + 3 + taps,
        "NUMBERS": interface.shape[0],
        "READ_FIRST": read_first,
        "TANH_KEY": tanh_key,
        "TANH_ADD": tanh_add,
        **blocks,
    }
