"""Triton implementation of stmeta::memory_read. Reference: stmeta.ops.memory_read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import (
    FIRST,
    FORWARD,
    TILES,
    divided,
    finish,
    launch,
    load_column,
    load_tile,
    load_vector,
    outer,
    parts_of,
    plan_of,
    store_column,
    store_tile,
    store_vector,
    tile_of,
)


@triton.jit
def read(
    tile, weight_ptr, out_ptr,  # in: [R, N]; out: [R, M], or this tile's part of it
    first, rows, width,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    for r in range(R):
        weight = load_column(weight_ptr, r, first, rows, BLOCK_N)
        store_vector(out_ptr, tl.sum(weight[:, None] * tile, 0), r, width, BLOCK_M)


# Reads the memory once.
@triton.jit
def _memory_read_fwd_kernel(
    memory_ptr, weight_ptr,  # in:  [B, N, M] with strides, [B, H, N]
    out_ptr,  # out: [B, H, M], or parts of it [B, tiles, H, M]
    rows, width, stride_b, stride_n, stride_m,
    H: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    batch, first = tile_of(rows, BLOCK_N)
    tile = load_tile(
        memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
    )
    own_ptr = out_ptr + tl.program_id(0).to(tl.int64) * H * width
    read(tile, weight_ptr + batch * H * rows, own_ptr, first, rows, width, H, BLOCK_N, BLOCK_M)


# Reads the memory once and writes its gradient.
@triton.jit
def _memory_read_bwd_kernel(
    grad_ptr, memory_ptr, weight_ptr,  # in:  [B, H, M], [B, N, M] with strides, [B, H, N]
    d_memory_ptr, d_weight_ptr,  # out: [B, N, M], [B, H, N]
    rows, width, stride_b, stride_n, stride_m,
    H: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    batch, first = tile_of(rows, BLOCK_N)
    tile = load_tile(
        memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
    )
    grads = grad_ptr + batch * H * width
    for h in tl.static_range(H):
        d = tl.sum(tile * load_vector(grads, h, width, BLOCK_M)[None, :], 1)
        store_column(d_weight_ptr + batch * H * rows, d, h, first, rows, BLOCK_N)
    d_tile = outer(
        tl.zeros([BLOCK_N, BLOCK_M], tl.float32), weight_ptr + batch * H * rows, grads,
        first, rows, width, H, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    out_ptr = d_memory_ptr + batch * rows * width
    store_tile(out_ptr, d_tile, first, rows, width, BLOCK_N, BLOCK_M)


def memory_read(memory: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Launch the forward: what each head reads, [B, H, M]."""
    batch, rows, width = memory.shape
    heads = weight.shape[1]
    out = memory.new_empty(batch, heads, width)
    if out.numel() == 0 or rows == 0:
        return out.zero_()
    plan = plan_of(1, FORWARD, memory)
    parts = parts_of(plan, out)
    with torch.cuda.device_of(memory):
        launch(
            *(_memory_read_fwd_kernel, plan, (FIRST,), batch, heads),
            *(memory, weight.contiguous(), parts, rows, width, *memory.stride()),
            H=heads,
        )
        finish(plan, parts, out)
    return out


def memory_read_backward(
    grad: torch.Tensor, memory: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of memory and weight."""
    batch, rows, width = memory.shape
    heads = weight.shape[1]
    d_memory, d_weight = memory.new_empty(memory.shape), weight.new_empty(weight.shape)
    if batch * rows == 0:
        return d_memory, d_weight
    plan = plan_of(1, TILES, memory)
    with torch.cuda.device_of(memory):
        launch(
            *(_memory_read_bwd_kernel, plan, (FIRST,), batch, heads),
            *(grad.contiguous(), memory, weight.contiguous(), d_memory, d_weight),
            *(rows, width, *memory.stride()),
            H=heads,
        )
    return d_memory, d_weight
