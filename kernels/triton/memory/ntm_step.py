"""Triton implementation of stmeta::ntm_step. Reference: stmeta.ops.ntm_step.

The pieces of content_addressing, location_addressing, erase_add and memory_read, one after the
other on the same tile of rows; see _common.py for when that is one launch.
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
    contiguous,
    divided,
    finish,
    floats,
    launch,
    load_column,
    load_heads,
    load_tile,
    load_vector,
    outer,
    parts_of,
    plan_of,
    store_column,
    store_heads,
    store_tile,
    tile_of,
)
from .content_addressing import score, score_backward, softmax, softmax_backward
from .erase_add import keep, write, write_backward
from .location_addressing import locate, locate_backward
from .memory_read import read


# Reads and writes the memory once; as several launches it reads it twice.
@triton.jit
def _ntm_step_fwd_kernel(
    memory_ptr, previous_ptr, key_ptr, strength_ptr,  # in: [B, N, M] strided, the rest contiguous
    gate_ptr, shift_ptr, sharpen_ptr, erase_ptr, add_ptr,
    scores_ptr, gated_ptr,  # scratch [B, H, N] fp32 x2
    out_ptr, weight_ptr, read_ptr, content_ptr,  # out: read may be parts of it, [B, tiles, R, M]
    rows, width, stride_b, stride_n, stride_m, eps,
    H: tl.constexpr, R: tl.constexpr, W: tl.constexpr, S: tl.constexpr, READ_FIRST: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    program = tl.program_id(0).to(tl.int64)
    if STAGE != ELEMENT:
        batch, first = tile_of(rows, BLOCK_N)
        tile = load_tile(
            memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )
    if STAGE == WHOLE or STAGE == FIRST:
        score(
            tile, key_ptr + batch * H * width, strength_ptr + batch * H,
            scores_ptr + batch * H * rows, first, rows, width, eps, H, BLOCK_N, BLOCK_M,
        )  # fmt: skip
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == ELEMENT:
        HEADS: tl.constexpr = H if STAGE == WHOLE else 1
        head = program * HEADS
        place = head * rows
        scores = load_heads(scores_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        content = softmax(scores, rows, BLOCK_R)
        store_heads(content_ptr + place, content, rows, HEADS, BLOCK_H, BLOCK_R)
        locate(
            content, previous_ptr + place, gate_ptr + head, shift_ptr + head * S,
            sharpen_ptr + head, gated_ptr + place, weight_ptr + place,
            rows, HEADS, S, BLOCK_H, BLOCK_R,
        )  # fmt: skip
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == LAST:
        weights = weight_ptr + batch * H * rows
        vectors = batch * W * width
        reads = read_ptr + program * R * width
        if READ_FIRST:
            read(tile, weights, reads, first, rows, width, R, BLOCK_N, BLOCK_M)
        tile = write(
            tile, weights + (H - W) * rows, erase_ptr + vectors, add_ptr + vectors,
            first, rows, width, W, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        if not READ_FIRST:
            read(tile, weights, reads, first, rows, width, R, BLOCK_N, BLOCK_M)
        store_tile(out_ptr + batch * rows * width, tile, first, rows, width, BLOCK_N, BLOCK_M)


@triton.jit
def _access_backward(
    tile, grad,  # the memory as it came in; gradient of the written one, read included
    grad_weight_ptr, grad_read_ptr, weight_ptr, erase_ptr, add_ptr,  # of this element
    grads_ptr, d_erase_ptr, d_add_ptr,  # out: [H, N] fp32, [W, M] x2 or parts
    first, rows, width,
    H: tl.constexpr, R: tl.constexpr, W: tl.constexpr, READ_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient of all weights, from what was given and from reading and writing."""
    writes = weight_ptr + (H - W) * rows
    seen = tile
    if not READ_FIRST:
        seen = write(
            tile, writes, erase_ptr, add_ptr, first, rows, width, W, BLOCK_N, BLOCK_M
        )  # fmt: skip
    for h in range(H):
        d = load_column(grad_weight_ptr, h, first, rows, BLOCK_N)
        if h < R:
            d += tl.sum(seen * load_vector(grad_read_ptr, h, width, BLOCK_M)[None, :], 1)
        store_column(grads_ptr, d, h, first, rows, BLOCK_N)
    tl.debug_barrier()  # threads read what others have written
    for w in range(W):
        d = load_column(grads_ptr, H - W + w, first, rows, BLOCK_N)
        d += write_backward(
            tile, grad, writes, erase_ptr, add_ptr, w, d_erase_ptr, d_add_ptr,
            first, rows, width, W, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        tl.debug_barrier()
        store_column(grads_ptr, d, H - W + w, first, rows, BLOCK_N)


# Reads the memory and its gradient once, and writes one; as several launches it reads them twice.
@triton.jit
def _ntm_step_bwd_kernel(
    grad_memory_ptr, grad_weight_ptr, grad_read_ptr,  # in: the first strided
    memory_ptr, previous_ptr, key_ptr, strength_ptr,  # in: as the forward
    gate_ptr, shift_ptr, sharpen_ptr, erase_ptr, add_ptr, weight_ptr, content_ptr,
    grads_ptr, gated_ptr, moved_ptr,  # scratch [B, H, N] fp32 x3; of the weights, then the scores
    d_memory_ptr, d_previous_ptr, d_key_ptr, d_strength_ptr,  # out; key, strength, erase, add may
    d_gate_ptr, d_shift_ptr, d_sharpen_ptr, d_erase_ptr, d_add_ptr,  # be parts, [B, tiles, ...]
    rows, width, stride_b, stride_n, stride_m, grad_b, grad_n, grad_m, eps,
    H: tl.constexpr, R: tl.constexpr, W: tl.constexpr, S: tl.constexpr, READ_FIRST: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    _, grad_b, grad_n = divided(width, grad_b, grad_n, VECTOR)
    program = tl.program_id(0).to(tl.int64)
    if STAGE != ELEMENT:
        batch, first = tile_of(rows, BLOCK_N)
        tile = load_tile(
            memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )
        grad = load_tile(
            grad_memory_ptr + batch * grad_b, first, rows, width, grad_n, grad_m, BLOCK_N, BLOCK_M
        )
        own = batch * H * rows
        weights = weight_ptr + own
        vectors = batch * W * width
        grad_read = grad_read_ptr + batch * R * width
        if not READ_FIRST:
            grad = outer(grad, weights, grad_read, first, rows, width, R, BLOCK_N, BLOCK_M)
    if STAGE == WHOLE or STAGE == FIRST:
        sums = program * W * width
        _access_backward(
            tile, grad, grad_weight_ptr + own, grad_read, weights, erase_ptr + vectors,
            add_ptr + vectors, grads_ptr + own, d_erase_ptr + sums, d_add_ptr + sums,
            first, rows, width, H, R, W, READ_FIRST, BLOCK_N, BLOCK_M,
        )  # fmt: skip
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == ELEMENT:
        HEADS: tl.constexpr = H if STAGE == WHOLE else 1
        head = program * HEADS
        place = head * rows
        content = load_heads(content_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        d = locate_backward(
            load_heads(grads_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R), content,
            previous_ptr + place, gate_ptr + head, shift_ptr + head * S, sharpen_ptr + head,
            gated_ptr + place, moved_ptr + place, d_previous_ptr + place, d_gate_ptr + head,
            d_shift_ptr + head * S, d_sharpen_ptr + head, rows, HEADS, S, BLOCK_H, BLOCK_R,
        )  # fmt: skip
        d = softmax_backward(content, d)
        store_heads(grads_ptr + place, d, rows, HEADS, BLOCK_H, BLOCK_R)
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == LAST:
        grad = keep(
            grad, weights + (H - W) * rows, erase_ptr + vectors, -1,
            first, rows, width, W, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        if READ_FIRST:
            grad = outer(grad, weights, grad_read, first, rows, width, R, BLOCK_N, BLOCK_M)
        grad = score_backward(
            tile, grad, grads_ptr + own, key_ptr + batch * H * width, strength_ptr + batch * H,
            d_key_ptr + program * H * width, d_strength_ptr + program * H,
            first, rows, width, eps, STAGE == WHOLE, H, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        store_tile(d_memory_ptr + batch * rows * width, grad, first, rows, width, BLOCK_N, BLOCK_M)


def ntm_step(
    memory: torch.Tensor,
    previous: torch.Tensor,
    key: torch.Tensor,
    strength: torch.Tensor,
    gate: torch.Tensor,
    shift: torch.Tensor,
    sharpen: torch.Tensor,
    erase: torch.Tensor,
    add: torch.Tensor,
    reads: int,
    read_first: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the forward: new memory, weight, read, content."""
    batch, rows, width = memory.shape
    heads, writes = key.shape[1], erase.shape[1]
    out, weight, content = (x.new_empty(x.shape) for x in (memory, previous, previous))
    read_out = memory.new_empty(batch, reads, width)
    if weight.numel() == 0:
        return out, weight, read_out.zero_(), content
    plan = plan_of(heads, FORWARD, memory)
    parts = parts_of(plan, read_out)
    with torch.cuda.device_of(memory):
        launch(
            *(_ntm_step_fwd_kernel, plan, (FIRST, ELEMENT, LAST), batch, heads, memory),
            *contiguous(previous, key, strength, gate, shift, sharpen, erase, add),
            *(*floats(weight, 2, *weight.shape), out, weight, parts, content),
            *(rows, width, *memory.stride(), eps),
            **_sizes(heads, reads, writes, shift.shape[2], read_first),
        )
        finish(plan, parts, read_out)
    return out, weight, read_out, content


def ntm_step_backward(
    grad_memory: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_read: torch.Tensor,
    memory: torch.Tensor,
    previous: torch.Tensor,
    key: torch.Tensor,
    strength: torch.Tensor,
    gate: torch.Tensor,
    shift: torch.Tensor,
    sharpen: torch.Tensor,
    erase: torch.Tensor,
    add: torch.Tensor,
    weight: torch.Tensor,
    content: torch.Tensor,
    reads: int,
    read_first: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of the nine inputs, in their order."""
    batch, rows, width = memory.shape
    heads, writes = key.shape[1], erase.shape[1]
    inputs = (memory, previous, key, strength, gate, shift, sharpen, erase, add)
    out = tuple(x.new_empty(x.shape) for x in inputs)
    if weight.numel() == 0:
        return tuple(x.zero_() for x in out)
    plan = plan_of(heads, BACKWARD, memory, grad_memory)
    d_memory, d_previous, d_key, d_strength, *others, d_erase, d_add = out
    keys, strengths, erases, adds = (parts_of(plan, x) for x in (d_key, d_strength, *out[7:]))
    key = key.contiguous()
    with torch.cuda.device_of(memory):
        launch(
            *(_ntm_step_bwd_kernel, plan, (FIRST, ELEMENT, LAST), batch, heads, grad_memory),
            *(*contiguous(grad_weight, grad_read), memory, previous.contiguous(), key),
            *contiguous(strength, gate, shift, sharpen, erase, add, weight, content),
            *(*floats(weight, 3, *weight.shape), d_memory, d_previous, keys, strengths, *others),
            *(erases, adds, rows, width, *memory.stride(), *grad_memory.stride(), eps),
            **_sizes(heads, reads, writes, shift.shape[2], read_first),
        )
        finish(plan, keys, d_key, strengths, d_strength, key, eps)
        finish(plan, erases, d_erase)
        finish(plan, adds, d_add)
    return out


def _sizes(heads: int, reads: int, writes: int, taps: int, read_first: bool) -> dict:
    """What the kernels are compiled for."""
    return {"H": heads, "R": reads, "W": writes, "S": taps, "READ_FIRST": read_first}
