"""Triton implementation of stmeta::content_addressing. Reference: stmeta.ops.content_addressing.

A tile of rows is compared with all keys while it is in registers; see _common.py. The pieces serve
ntm_step and lrua_step as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import (
    BACKWARD,
    ELEMENT,
    FIRST,
    FORWARD,
    LAST,
    WHOLE,
    centred,
    contiguous,
    divided,
    finish,
    floats,
    key_grad,
    launch,
    load_column,
    load_heads,
    load_number,
    load_tile,
    load_vector,
    parts_of,
    plan_of,
    store_column,
    store_heads,
    store_tile,
    store_vector,
    sum_wide,
    tile_of,
)


@triton.jit
def _unit(key, eps):
    return tl.div_rn(key, tl.sqrt_rn(tl.sum(key * key)) + eps)


@triton.jit
def _row_size(tile, first, rows, BLOCK_N: tl.constexpr):
    """Norm of each row; 1 for rows that are not there, so that nothing divides by zero."""
    exists = first + tl.arange(0, BLOCK_N) < rows
    return tl.where(exists, tl.sqrt_rn(tl.sum(tile * tile, 1)), 1.0)


@triton.jit
def score(
    tile, key_ptr, strength_ptr,  # in:  [H, M], [H]
    scores_ptr,  # out: [H, N] fp32, strength * cosine
    first, rows, width, eps,
    H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    size = _row_size(tile, first, rows, BLOCK_N)
    for h in tl.static_range(H):
        unit = _unit(load_vector(key_ptr, h, width, BLOCK_M), eps)
        cosine = tl.div_rn(tl.sum(tile * unit[None, :], 1), size + eps)
        store_column(
            scores_ptr, cosine * load_number(strength_ptr, h), h, first, rows, BLOCK_N
        )  # fmt: skip


@triton.jit
def softmax(x, rows, BLOCK_R: tl.constexpr):
    """Over the rows of [heads, BLOCK_R]."""
    exists = (tl.arange(0, BLOCK_R) < rows)[None, :]
    x = tl.where(exists, x, float("-inf"))
    e = tl.exp(x - tl.max(x, 1)[:, None])
    return tl.div_rn(e, tl.sum(e, 1)[:, None])


@triton.jit
def softmax_backward(weight, grad):
    """Gradient of the scores from that of the weights, [heads, BLOCK_R]."""
    return weight * centred(weight, grad)


@triton.jit
def score_backward(
    tile, grad, d_scores_ptr, key_ptr, strength_ptr,  # in:  [H, N] fp32, [H, M], [H]
    d_key_ptr, d_strength_ptr,  # out: [H, M], [H]; or this tile's part of them
    first, rows, width, eps,
    FINISH: tl.constexpr,  # d_key is not a part: go from keys of unit length to keys
    H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Adds to grad, [BLOCK_N, BLOCK_M], and returns it."""
    size = _row_size(tile, first, rows, BLOCK_N)
    inverse = tl.div_rn(1.0, size + eps)
    along = tl.zeros([BLOCK_N], tl.float32)
    for h in tl.static_range(H):
        key = load_vector(key_ptr, h, width, BLOCK_M)
        unit = _unit(key, eps)
        cosine = tl.div_rn(tl.sum(tile * unit[None, :], 1), size + eps)
        d = load_column(d_scores_ptr, h, first, rows, BLOCK_N)
        tl.store(d_strength_ptr + h, sum_wide(d, cosine, 0))
        d *= load_number(strength_ptr, h) * inverse
        along += d * cosine
        grad += d[:, None] * unit[None, :]
        d_key = tl.sum(d[:, None] * tile, 0)
        if FINISH:
            d_key = key_grad(d_key, key, eps)
        store_vector(d_key_ptr, d_key, h, width, BLOCK_M)
    empty = size == 0.0
    along = tl.where(empty, 0.0, tl.div_rn(along, tl.where(empty, 1.0, size)))
    return grad - along[:, None] * tile


# Reads the memory once. As several launches: and B * H * N numbers written and read.
@triton.jit
def _content_addressing_fwd_kernel(
    memory_ptr, key_ptr, strength_ptr,  # in:  [B, N, M] with strides, [B, H, M], [B, H]
    scores_ptr, weight_ptr,  # scratch [B, H, N] fp32; out: [B, H, N]
    rows, width, stride_b, stride_n, stride_m, eps,
    H: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    if STAGE != ELEMENT:
        batch, first = tile_of(rows, BLOCK_N)
        tile = load_tile(
            memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )
        score(
            tile, key_ptr + batch * H * width, strength_ptr + batch * H,
            scores_ptr + batch * H * rows, first, rows, width, eps, H, BLOCK_N, BLOCK_M,
        )  # fmt: skip
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE != FIRST:
        HEADS: tl.constexpr = H if STAGE == WHOLE else 1
        place = tl.program_id(0).to(tl.int64) * HEADS * rows
        scores = load_heads(scores_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        weight = softmax(scores, rows, BLOCK_R)
        store_heads(weight_ptr + place, weight, rows, HEADS, BLOCK_H, BLOCK_R)


# Reads the memory once and writes its gradient.
@triton.jit
def _content_addressing_bwd_kernel(
    grad_ptr, memory_ptr, key_ptr, strength_ptr, weight_ptr,  # in: [B, H, N], as above, [B, H, N]
    scores_ptr,  # scratch [B, H, N] fp32: gradient of the scores
    d_memory_ptr, d_key_ptr, d_strength_ptr,  # out: [B, N, M]; [B, H, M], [B, H] or parts
    rows, width, stride_b, stride_n, stride_m, eps,
    H: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    program = tl.program_id(0).to(tl.int64)
    if STAGE != LAST:
        HEADS: tl.constexpr = H if STAGE == WHOLE else 1
        place = program * HEADS * rows
        grad = load_heads(grad_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        weight = load_heads(weight_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        d = softmax_backward(weight, grad)
        store_heads(scores_ptr + place, d, rows, HEADS, BLOCK_H, BLOCK_R)
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE != ELEMENT:
        batch, first = tile_of(rows, BLOCK_N)
        tile = load_tile(
            memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )
        d_tile = score_backward(
            tile, tl.zeros([BLOCK_N, BLOCK_M], tl.float32), scores_ptr + batch * H * rows,
            key_ptr + batch * H * width, strength_ptr + batch * H,
            d_key_ptr + program * H * width, d_strength_ptr + program * H,
            first, rows, width, eps, STAGE == WHOLE, H, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        out_ptr = d_memory_ptr + batch * rows * width
        store_tile(out_ptr, d_tile, first, rows, width, BLOCK_N, BLOCK_M)


def content_addressing(
    memory: torch.Tensor, key: torch.Tensor, strength: torch.Tensor, eps: float
) -> torch.Tensor:
    """Launch the forward: weights [B, H, N]."""
    batch, rows, width = memory.shape
    heads = key.shape[1]
    weight = memory.new_empty(batch, heads, rows)
    if weight.numel() == 0:
        return weight
    plan = plan_of(heads, FORWARD, memory)
    with torch.cuda.device_of(memory):
        launch(
            *(_content_addressing_fwd_kernel, plan, (FIRST, ELEMENT), batch, heads),
            *(memory, *contiguous(key, strength), floats(weight, *weight.shape), weight),
            *(rows, width, *memory.stride(), eps),
            H=heads,
        )
    return weight


def content_addressing_backward(
    grad: torch.Tensor,
    memory: torch.Tensor,
    key: torch.Tensor,
    strength: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of memory, key, strength."""
    batch, rows, width = memory.shape
    heads = key.shape[1]
    d_memory, d_key, d_strength = (x.new_empty(x.shape) for x in (memory, key, strength))
    if grad.numel() == 0:
        return d_memory.zero_(), d_key.zero_(), d_strength.zero_()
    plan = plan_of(heads, BACKWARD, memory)
    keys, strengths = parts_of(plan, d_key), parts_of(plan, d_strength)
    grad, key, strength, weight = contiguous(grad, key, strength, weight)
    with torch.cuda.device_of(memory):
        launch(
            *(_content_addressing_bwd_kernel, plan, (ELEMENT, LAST), batch, heads),
            *(grad, memory, key, strength, weight, floats(weight, *weight.shape)),
            *(d_memory, keys, strengths, rows, width, *memory.stride(), eps),
            H=heads,
        )
        finish(plan, keys, d_key, strengths, d_strength, key, eps)
    return d_memory, d_key, d_strength
