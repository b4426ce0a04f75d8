"""Triton implementation of stmeta::erase_add. Reference: stmeta.ops.erase_add.

Programs take tiles of rows and meet nowhere; the backward leaves a part of the sums over rows for
each tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import (
    BACKWARD,
    FIRST,
    TILES,
    contiguous,
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
def keep(
    tile, weight_ptr, erase_ptr, skipped,  # in: [W, N], [W, M], a head or -1
    first, rows, width,
    W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What is left of a tile after all heads, but for the skipped one, have erased."""
    for w in range(W):
        weight = load_column(weight_ptr, w, first, rows, BLOCK_N)
        weight = tl.where(w == skipped, 0.0, weight)
        erase = load_vector(erase_ptr, w, width, BLOCK_M)
        tile -= tile * (weight[:, None] * erase[None, :])
    return tile


@triton.jit
def write(
    tile, weight_ptr, erase_ptr, add_ptr, first, rows, width,
    W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The tile after erase and add."""
    tile = keep(tile, weight_ptr, erase_ptr, -1, first, rows, width, W, BLOCK_N, BLOCK_M)
    return outer(tile, weight_ptr, add_ptr, first, rows, width, W, BLOCK_N, BLOCK_M)


@triton.jit
def write_backward(
    tile, grad, weight_ptr, erase_ptr, add_ptr, w,
    d_erase_ptr, d_add_ptr,  # out: [W, M] x2, or this tile's part of them
    first, rows, width,
    W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient of the weights of writing head w, [BLOCK_N]; without dividing by 1 - w * e."""
    other = keep(tile, weight_ptr, erase_ptr, w, first, rows, width, W, BLOCK_N, BLOCK_M)
    other *= grad
    weight = load_column(weight_ptr, w, first, rows, BLOCK_N)
    erase = load_vector(erase_ptr, w, width, BLOCK_M)
    add = load_vector(add_ptr, w, width, BLOCK_M)
    store_vector(d_erase_ptr, -tl.sum(weight[:, None] * other, 0), w, width, BLOCK_M)
    store_vector(d_add_ptr, tl.sum(weight[:, None] * grad, 0), w, width, BLOCK_M)
    return tl.sum(grad * add[None, :] - other * erase[None, :], 1)


# Reads and writes the memory once.
@triton.jit
def _erase_add_fwd_kernel(
    memory_ptr, weight_ptr, erase_ptr, add_ptr,  # in: [B, N, M] strided, [B, W, N], [B, W, M] x2
    out_ptr,  # out: [B, N, M]
    rows, width, stride_b, stride_n, stride_m,
    W: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    batch, first = tile_of(rows, BLOCK_N)
    tile = load_tile(
        memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
    )
    vectors = batch * W * width
    tile = write(
        tile, weight_ptr + batch * W * rows, erase_ptr + vectors, add_ptr + vectors,
        first, rows, width, W, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    store_tile(out_ptr + batch * rows * width, tile, first, rows, width, BLOCK_N, BLOCK_M)


# Reads the memory and the gradient once, and writes the memory's gradient.
@triton.jit
def _erase_add_bwd_kernel(
    grad_ptr, memory_ptr, weight_ptr, erase_ptr, add_ptr,  # in: as above, grad as memory
    d_memory_ptr, d_weight_ptr, d_erase_ptr, d_add_ptr,  # out: the last two, or parts of them
    rows, width, stride_b, stride_n, stride_m, grad_b, grad_n, grad_m,
    W: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    _, grad_b, grad_n = divided(width, grad_b, grad_n, VECTOR)
    batch, first = tile_of(rows, BLOCK_N)
    tile = load_tile(
        memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
    )
    grad = load_tile(
        grad_ptr + batch * grad_b, first, rows, width, grad_n, grad_m, BLOCK_N, BLOCK_M
    )
    weights = weight_ptr + batch * W * rows
    vectors = batch * W * width
    sums = tl.program_id(0).to(tl.int64) * W * width
    for w in tl.static_range(W):
        d = write_backward(
            tile, grad, weights, erase_ptr + vectors, add_ptr + vectors, w,
            d_erase_ptr + sums, d_add_ptr + sums, first, rows, width, W, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        store_column(d_weight_ptr + batch * W * rows, d, w, first, rows, BLOCK_N)
    grad = keep(grad, weights, erase_ptr + vectors, -1, first, rows, width, W, BLOCK_N, BLOCK_M)
    store_tile(d_memory_ptr + batch * rows * width, grad, first, rows, width, BLOCK_N, BLOCK_M)


def erase_add(
    memory: torch.Tensor, weight: torch.Tensor, erase: torch.Tensor, add: torch.Tensor
) -> torch.Tensor:
    """Launch the forward: the new memory, [B, N, M]."""
    batch, rows, width = memory.shape
    out = memory.new_empty(memory.shape)
    if out.numel() == 0:
        return out
    plan = plan_of(1, TILES, memory)
    with torch.cuda.device_of(memory):
        launch(
            *(_erase_add_fwd_kernel, plan, (FIRST,), batch, 1),
            *(memory, *contiguous(weight, erase, add), out, rows, width, *memory.stride()),
            W=weight.shape[1],
        )
    return out


def erase_add_backward(
    grad: torch.Tensor,
    memory: torch.Tensor,
    weight: torch.Tensor,
    erase: torch.Tensor,
    add: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of memory, weight, erase, add."""
    batch, rows, width = memory.shape
    inputs = (memory, weight, erase, add)
    out = d_memory, d_weight, d_erase, d_add = tuple(x.new_empty(x.shape) for x in inputs)
    if grad.numel() == 0:
        return tuple(x.zero_() for x in out)
    plan = plan_of(1, BACKWARD, memory, grad)
    erases, adds = parts_of(plan, d_erase), parts_of(plan, d_add)
    with torch.cuda.device_of(memory):
        launch(
            *(_erase_add_bwd_kernel, plan, (FIRST,), batch, 1),
            *(grad, memory, *contiguous(weight, erase, add), d_memory, d_weight, erases, adds),
            *(rows, width, *memory.stride(), *grad.stride()),
            W=weight.shape[1],
        )
        finish(plan, erases, d_erase)
        finish(plan, adds, d_add)
    return out
