"""What the forward and the backward of Triton's memory_scan share; see memory_scan.py."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ._memory import BACKWARD, load_tile, plan_of, store_tile

UNITS = 16  # of a block of weights
INNER = 64  # numbers that each of them multiplies at a time


@triton.jit
def known_divisor(n, VECTOR: tl.constexpr):
    """The same number; the compiler then knows that VECTOR divides it, and loads vectors."""
    return n // VECTOR * VECTOR


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0.0, -1.0, 1.0) * tl.div_rn(1.0 - e, 1.0 + e)


@triton.jit
def steps_of(lengths_ptr, batch, steps):
    """The steps of an episode, whatever `lengths` says."""
    length = steps
    if lengths_ptr is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths_ptr + batch), 0), steps).to(tl.int32)
    return length


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


@triton.jit
def product(
    x_ptr, matrix_ptr, count, n, wide,  # in: [count], [count, wide]; columns n
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum of x[i] * matrix[i, n]."""
    sums = tl.zeros([BLOCK_I, BLOCK_K], tl.float32)
    for first in range(0, count, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x = tl.load(x_ptr + i, mask=i < count, other=0.0)[:, None]
        place = matrix_ptr + i[:, None] * wide + n[None, :]
        live = (i < count)[:, None] & (n < wide)[None, :]
        sums += tl.load(place, mask=live, other=0.0) * x
    return tl.sum(sums, 0)


@triton.jit
def copy_memory(
    from_ptr, to_ptr, rows, width,  # [N, M] x2
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    for chunk in tl.range(CHUNKS, disable_licm=True):
        first = chunk * CHUNK + rows * 0
        memory = load_tile(from_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
        store_tile(to_ptr, memory, first, rows, width, CHUNK, BLOCK_M)


def every_of(steps: int) -> int:
    """Steps between two marks."""
    return max(1, math.isqrt(max(0, steps - 1)) + 1)


def constants_of(
    memory: torch.Tensor, recurrent: torch.Tensor, previous: torch.Tensor, c: torch.Tensor,
    numbers: int, options: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """Constants of both kernels; a ValueError where a program cannot keep the memory."""
    heads, width = previous.shape[1], memory.shape[2]
    plan = plan_of(heads, BACKWARD, memory)
    if not plan.whole or recurrent.numel() >= 2**31 or heads == 0:
        raise ValueError(
            "memory_scan: the triton backend keeps the memory in registers: N * M, each rounded up "
            f"to a power of two, must be at most {BACKWARD}, with 1 head or more and fewer than "
            f"2^31 weights; got R = {heads}, [N, M] = {list(memory.shape[1:])} and "
            f"{recurrent.numel()} weights; use 'cuda' or 'eager'"
        )
    fed, hidden = recurrent.shape[1], c.shape[1]
    _, read_first, shared, strength, write_key, _ = options
    return {
        "R": heads,
        "PER_HEAD": numbers // heads,
        "READ_FIRST": read_first,
        "SHARED": shared,
        "STRENGTH": strength,
        "WRITE_KEY": write_key,
        **{name: plan.blocks[name] for name in ("BLOCK_N", "BLOCK_M", "BLOCK_H")},
        "BLOCK_C": UNITS,
        "BLOCK_K": min(INNER, max(16, triton.next_power_of_2(fed))),
        "VECTOR": math.gcd(8, width),
        "VECTOR_K": math.gcd(8, fed, hidden),
        "num_warps": 8,  # of the largest memory; the weights keep them busy with any
    }


def dense(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None else x.contiguous()
