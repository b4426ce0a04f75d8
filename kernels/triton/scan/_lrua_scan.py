"""What the forward and the backward of Triton's lrua_scan share; see lrua_scan.py."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._common import blocks_of


@triton.jit
def spread(
    x, i, live, add_ptr,  # in: numbers i of heads [R, P], shaped; [R, M] or None
    keys_ptr, adds_ptr, strengths_ptr, gates_ptr,  # out: [R, M] x2, [R] x2
    width,
    WRITE_KEY: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Shaped heads to where each kind lies side by side."""
    r, j = i // PER_HEAD, i % PER_HEAD
    place = r * width + j
    of_key = live & (j < width)
    tl.store(keys_ptr + place, x, mask=of_key)
    if WRITE_KEY:
        written = x
        if add_ptr is not None:
            written += tl.load(add_ptr + place, mask=of_key, other=0.0)
        tl.store(adds_ptr + place, written, mask=of_key)
    else:
        tl.store(adds_ptr + place - width, x, mask=live & (j >= width) & (j < 2 * width))
    tl.store(strengths_ptr + r, x, mask=live & (j == PER_HEAD - 2))
    tl.store(gates_ptr + r, x, mask=live & (j == PER_HEAD - 1))


def constants_of(
    memory: torch.Tensor, recurrent: torch.Tensor, interface: torch.Tensor,
    previous: torch.Tensor, c: torch.Tensor, options: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """Constants of both kernels; a ValueError where a program cannot keep the memory."""
    heads = previous.shape[1]
    blocks = blocks_of("lrua_scan", heads, memory, c.shape[1], recurrent, interface)
    _, read_first, shared, strength, write_key, _ = options
    return {
        "R": heads,
        "PER_HEAD": interface.shape[0] // heads,
        "READ_FIRST": read_first,
        "SHARED": shared,
        "STRENGTH": strength,
        "WRITE_KEY": write_key,
        **blocks,
    }
