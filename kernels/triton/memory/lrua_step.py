"""Triton implementation of stmeta::lrua_step. Reference: stmeta.ops.lrua_step.

The least used rows come first, then all as in ntm_step; see _common.py for when that is one launch.
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
    USAGE,
    WHOLE,
    contiguous,
    divided,
    finish,
    floats,
    launch,
    load_column,
    load_heads,
    load_number,
    load_tile,
    load_vector,
    outer,
    parts_of,
    plan_of,
    store_column,
    store_heads,
    store_tile,
    store_vector,
    sum_wide,
    tile_of,
)
from .content_addressing import score, score_backward, softmax, softmax_backward
from .memory_read import read


@triton.jit
def find_least(
    usage_ptr, rows_ptr,  # in:  [N]; out: int64 [R], the least used first, the lower one on a tie
    rows,
    R: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, BLOCK_R)
    usage = tl.load(usage_ptr + n, mask=n < rows, other=0.0).to(tl.float32)
    bits = tl.where(usage == 0.0, 0.0, usage).to(tl.int32, bitcast=True)  # -0 is 0
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # sorts as the number does
    rank = tl.where(usage != usage, 0x7FFFFFFE, rank)  # NaN comes last
    rank = tl.where(n < rows, rank, 0x7FFFFFFF)
    for r in tl.static_range(R):
        least = tl.argmin(rank, 0)
        tl.store(rows_ptr + r, least.to(tl.int64))
        rank = tl.where(n == least, 0x7FFFFFFF, rank)


@triton.jit
def _erased(rows_ptr, first, R: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which rows of a tile are among the least used ones."""
    n = first + tl.arange(0, BLOCK_N)
    erased = n < 0
    for r in tl.static_range(R):
        erased = erased | (n == tl.load(rows_ptr + r))
    return erased


@triton.jit
def _least(
    rows_ptr, erased, r, first, SHARED: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """1 where head r writes by its gate."""
    found = erased
    if not SHARED:
        found = first + tl.arange(0, BLOCK_N) == tl.load(rows_ptr + r)
    return tl.where(found, 1.0, 0.0)


@triton.jit
def _write_weight(
    previous_ptr, gate_ptr, rows_ptr, erased, r, first, rows,
    SHARED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    gate = load_number(gate_ptr, r)
    least = _least(rows_ptr, erased, r, first, SHARED, BLOCK_N)
    return gate * load_column(previous_ptr, r, first, rows, BLOCK_N) + (1.0 - gate) * least


@triton.jit
def write_rows(
    tile, previous_ptr, gate_ptr, add_ptr, rows_ptr, first, rows, width,
    R: tl.constexpr, SHARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The tile after the write."""
    erased = _erased(rows_ptr, first, R, BLOCK_N)
    tile = tl.where(erased[:, None], 0.0, tile)
    for r in tl.static_range(R):
        weight = _write_weight(
            previous_ptr, gate_ptr, rows_ptr, erased, r, first, rows, SHARED, BLOCK_N
        )
        tile += weight[:, None] * load_vector(add_ptr, r, width, BLOCK_M)[None, :]
    return tile


@triton.jit
def store_usage(
    usage_ptr, weight_ptr, previous_ptr, gate_ptr, rows_ptr, out_ptr, first, rows, decay,
    R: tl.constexpr, SHARED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    erased = _erased(rows_ptr, first, R, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for r in tl.static_range(R):
        total += load_column(weight_ptr, r, first, rows, BLOCK_N)
        total += _write_weight(
            previous_ptr, gate_ptr, rows_ptr, erased, r, first, rows, SHARED, BLOCK_N
        )
    total += decay * load_column(usage_ptr, 0, first, rows, BLOCK_N)
    store_column(out_ptr, total, 0, first, rows, BLOCK_N)


# Reads and writes the memory once; as several launches it reads it twice.
@triton.jit
def _lrua_step_fwd_kernel(
    memory_ptr, usage_ptr, previous_ptr, key_ptr,  # in: [B, N, M] strided, the rest contiguous
    strength_ptr, gate_ptr, add_ptr,
    scores_ptr,  # scratch [B, R, N] fp32
    out_ptr, usage_out_ptr, weight_ptr, read_ptr, rows_ptr,  # out: read may be parts of it
    rows, width, stride_b, stride_n, stride_m, decay, eps,
    R: tl.constexpr, READ_FIRST: tl.constexpr, SHARED: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    program = tl.program_id(0).to(tl.int64)
    if STAGE == WHOLE or STAGE == USAGE:
        find_least(usage_ptr + program * rows, rows_ptr + program * R, rows, R, BLOCK_R)
    if STAGE == WHOLE:
        tl.debug_barrier()
    batch, first = tile_of(rows, BLOCK_N)
    own, vectors = batch * R * rows, batch * R * width
    memory_ptr += batch * stride_b
    out_ptr += batch * rows * width
    if STAGE == WHOLE or STAGE == FIRST:
        tile = load_tile(
            memory_ptr, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )  # fmt: skip
        written = write_rows(
            tile, previous_ptr + own, gate_ptr + batch * R, add_ptr + vectors,
            rows_ptr + batch * R, first, rows, width, R, SHARED, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        store_tile(out_ptr, written, first, rows, width, BLOCK_N, BLOCK_M)
        if not READ_FIRST:
            tile = written
        score(
            tile, key_ptr + vectors, strength_ptr + batch * R, scores_ptr + own,
            first, rows, width, eps, R, BLOCK_N, BLOCK_M,
        )  # fmt: skip
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == ELEMENT:
        HEADS: tl.constexpr = R if STAGE == WHOLE else 1
        place = program * HEADS * rows
        scores = load_heads(scores_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        weight = softmax(scores, rows, BLOCK_R)
        store_heads(weight_ptr + place, weight, rows, HEADS, BLOCK_H, BLOCK_R)
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == LAST:
        if STAGE == LAST:
            if READ_FIRST:
                tile = load_tile(
                    memory_ptr, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
                )  # fmt: skip
            else:
                tile = load_tile(out_ptr, first, rows, width, width, 1, BLOCK_N, BLOCK_M)
        reads = read_ptr + program * R * width
        read(tile, weight_ptr + own, reads, first, rows, width, R, BLOCK_N, BLOCK_M)
        store_usage(
            usage_ptr + batch * rows, weight_ptr + own, previous_ptr + own, gate_ptr + batch * R,
            rows_ptr + batch * R, usage_out_ptr + batch * rows,
            first, rows, decay, R, SHARED, BLOCK_N,
        )  # fmt: skip


@triton.jit
def write_rows_backward(
    grad, previous_ptr, gate_ptr, add_ptr, rows_ptr,  # in: of this element
    d_previous_ptr, d_gate_ptr, d_add_ptr,  # out: the last two may be parts
    first, rows, width,
    R: tl.constexpr, SHARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient of the memory before the write from that of the memory after it."""
    erased = _erased(rows_ptr, first, R, BLOCK_N)
    for r in tl.static_range(R):
        gate = load_number(gate_ptr, r)
        previous = load_column(previous_ptr, r, first, rows, BLOCK_N)
        least = _least(rows_ptr, erased, r, first, SHARED, BLOCK_N)
        d = tl.sum(grad * load_vector(add_ptr, r, width, BLOCK_M)[None, :], 1)
        store_column(d_previous_ptr, gate * d, r, first, rows, BLOCK_N)
        tl.store(d_gate_ptr + r, sum_wide(d, previous - least, 0))
        weight = gate * previous + (1.0 - gate) * least
        store_vector(d_add_ptr, tl.sum(weight[:, None] * grad, 0), r, width, BLOCK_M)
    return tl.where(erased[:, None], 0.0, grad)


# Reads the memory and its gradient once, and writes one; as several launches it reads memory twice.
@triton.jit
def _lrua_step_bwd_kernel(
    grad_memory_ptr, grad_weight_ptr, grad_read_ptr,  # in: the first strided
    memory_ptr, previous_ptr, key_ptr, strength_ptr, gate_ptr, add_ptr,  # in: as the forward
    weight_ptr, rows_ptr,
    grads_ptr,  # scratch [B, R, N] fp32: of the weights, then of the scores
    d_memory_ptr, d_previous_ptr,  # out
    d_key_ptr, d_strength_ptr, d_gate_ptr, d_add_ptr,  # out, or parts, [B, tiles, ...]
    rows, width, stride_b, stride_n, stride_m, grad_b, grad_n, grad_m, eps,
    R: tl.constexpr, READ_FIRST: tl.constexpr, SHARED: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    width, stride_b, stride_n = divided(width, stride_b, stride_n, VECTOR)
    _, grad_b, grad_n = divided(width, grad_b, grad_n, VECTOR)
    program = tl.program_id(0).to(tl.int64)
    batch, first = tile_of(rows, BLOCK_N)
    own, vectors, numbers = batch * R * rows, batch * R * width, batch * R
    if STAGE != ELEMENT:
        tile = load_tile(
            memory_ptr + batch * stride_b, first, rows, width, stride_n, stride_m, BLOCK_N, BLOCK_M
        )
        if not READ_FIRST:
            tile = write_rows(
                tile, previous_ptr + own, gate_ptr + numbers, add_ptr + vectors,
                rows_ptr + numbers, first, rows, width, R, SHARED, BLOCK_N, BLOCK_M,
            )  # fmt: skip
    if STAGE == WHOLE or STAGE == FIRST:
        for r in tl.static_range(R):
            d = load_column(grad_weight_ptr + own, r, first, rows, BLOCK_N)
            vector = load_vector(grad_read_ptr + vectors, r, width, BLOCK_M)
            d += tl.sum(tile * vector[None, :], 1)
            store_column(grads_ptr + own, d, r, first, rows, BLOCK_N)
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == ELEMENT:
        HEADS: tl.constexpr = R if STAGE == WHOLE else 1
        place = program * HEADS * rows
        weight = load_heads(weight_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        grads = load_heads(grads_ptr + place, rows, HEADS, BLOCK_H, BLOCK_R)
        tl.debug_barrier()  # other threads may have read what this one writes
        grads = softmax_backward(weight, grads)
        store_heads(grads_ptr + place, grads, rows, HEADS, BLOCK_H, BLOCK_R)
    if STAGE == WHOLE:
        tl.debug_barrier()
    if STAGE == WHOLE or STAGE == LAST:
        grad = load_tile(
            grad_memory_ptr + batch * grad_b, first, rows, width, grad_n, grad_m, BLOCK_N, BLOCK_M
        )
        sums, singles = program * R * width, program * R
        if READ_FIRST:
            grad = write_rows_backward(
                grad, previous_ptr + own, gate_ptr + numbers, add_ptr + vectors,
                rows_ptr + numbers, d_previous_ptr + own, d_gate_ptr + singles, d_add_ptr + sums,
                first, rows, width, R, SHARED, BLOCK_N, BLOCK_M,
            )  # fmt: skip
        grad = outer(
            grad, weight_ptr + own, grad_read_ptr + vectors,
            first, rows, width, R, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        grad = score_backward(
            tile, grad, grads_ptr + own, key_ptr + vectors, strength_ptr + numbers,
            d_key_ptr + sums, d_strength_ptr + singles,
            first, rows, width, eps, STAGE == WHOLE, R, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        if not READ_FIRST:
            grad = write_rows_backward(
                grad, previous_ptr + own, gate_ptr + numbers, add_ptr + vectors,
                rows_ptr + numbers, d_previous_ptr + own, d_gate_ptr + singles, d_add_ptr + sums,
                first, rows, width, R, SHARED, BLOCK_N, BLOCK_M,
            )  # fmt: skip
        store_tile(d_memory_ptr + batch * rows * width, grad, first, rows, width, BLOCK_N, BLOCK_M)


def lrua_step(
    memory: torch.Tensor,
    usage: torch.Tensor,
    previous: torch.Tensor,
    key: torch.Tensor,
    strength: torch.Tensor,
    gate: torch.Tensor,
    add: torch.Tensor,
    decay: float,
    read_first: bool,
    shared: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the forward: new memory, usage, weight, read, rows."""
    batch, rows, width = memory.shape
    heads = key.shape[1]
    out, usage_out, weight, read_out = (
        x.new_empty(x.shape) for x in (memory, usage, previous, key)
    )
    least = memory.new_empty(batch, heads, dtype=torch.int64)
    if batch * rows == 0:
        return out, usage_out, weight, read_out.zero_(), least
    plan = plan_of(heads, FORWARD, memory)
    parts = parts_of(plan, read_out)
    with torch.cuda.device_of(memory):
        launch(
            *(_lrua_step_fwd_kernel, plan, (USAGE, FIRST, ELEMENT, LAST), batch, heads, memory),
            *contiguous(usage, previous, key, strength, gate, add),
            *(floats(weight, *weight.shape), out, usage_out, weight, parts, least),
            *(rows, width, *memory.stride(), decay, eps),
            **{"R": heads, "READ_FIRST": read_first, "SHARED": shared},
        )
        finish(plan, parts, read_out)
    return out, usage_out, weight, read_out, least


def lrua_step_backward(
    grad_memory: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_read: torch.Tensor,
    memory: torch.Tensor,
    previous: torch.Tensor,
    key: torch.Tensor,
    strength: torch.Tensor,
    gate: torch.Tensor,
    add: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    read_first: bool,
    shared: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of memory, previous, key, strength, gate, add."""
    batch, count, width = memory.shape
    heads = key.shape[1]
    inputs = (memory, previous, key, strength, gate, add)
    out = tuple(x.new_empty(x.shape) for x in inputs)
    if batch * count == 0:
        return tuple(x.zero_() for x in out)
    d_memory, d_previous, d_key, d_strength, d_gate, d_add = out
    plan = plan_of(heads, BACKWARD, memory, grad_memory)
    keys, strengths, gates, adds = parts = [parts_of(plan, x) for x in out[2:]]
    key = key.contiguous()
    with torch.cuda.device_of(memory):
        launch(
            *(_lrua_step_bwd_kernel, plan, (FIRST, ELEMENT, LAST), batch, heads, grad_memory),
            *(*contiguous(grad_weight, grad_read), memory, previous.contiguous(), key),
            *contiguous(strength, gate, add, weight, rows),
            *(floats(weight, *weight.shape), d_memory, d_previous, *parts),
            *(count, width, *memory.stride(), *grad_memory.stride(), eps),
            **{"R": heads, "READ_FIRST": read_first, "SHARED": shared},
        )
        finish(plan, keys, d_key, strengths, d_strength, key, eps)
        finish(plan, adds, d_add, gates, d_gate)
    return out
