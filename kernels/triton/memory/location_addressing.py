"""Triton implementation of stmeta::location_addressing.

Reference: stmeta.ops.location_addressing.

A program takes all rows of one head (in ntm_step: of some). Threads reach the rows that a shift
brings through scratch in global memory: `tl.gather` would cost a shuffle for each row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import (
    centred,
    contiguous,
    floats,
    heads_of,
    load_heads,
    store_heads,
    sum_wide,
    whole_rows,
)


@triton.jit
def _per_head(ptr, stride, HEADS: tl.constexpr, BLOCK_H: tl.constexpr):
    """A number of each head, [BLOCK_H, 1]."""
    h = tl.arange(0, BLOCK_H)
    return tl.load(ptr + h * stride, mask=h < HEADS, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _store_per_head(ptr, x, stride, HEADS: tl.constexpr, BLOCK_H: tl.constexpr):
    h = tl.arange(0, BLOCK_H)
    tl.store(ptr + h * stride, x, mask=h < HEADS)


@triton.jit
def _moved(
    ptr, offset, rows, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """x[n - offset] around the ring, of fp32 [H, N]."""
    _, live = heads_of(rows, HEADS, BLOCK_H, BLOCK_R)
    n = tl.arange(0, BLOCK_R) - offset
    n = tl.where(n < 0, n + rows, tl.where(n >= rows, n - rows, n))
    place = tl.arange(0, BLOCK_H)[:, None] * rows + n[None, :]
    return tl.load(ptr + place, mask=live, other=0.0)


@triton.jit
def _shifted(
    content, previous, gate, shift_ptr, gated_ptr, rows,
    HEADS: tl.constexpr, S: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gated weights, left in gated_ptr for all threads, after the shift."""
    step = content - previous  # from the nearer end: exact at both
    gated = tl.where(gate < 0.5, previous + gate * step, content - (1.0 - gate) * step)
    store_heads(gated_ptr, gated, rows, HEADS, BLOCK_H, BLOCK_R)
    tl.debug_barrier()  # threads read what others have written
    v = tl.zeros([BLOCK_H, BLOCK_R], tl.float32)
    for s in range(S):
        tap = _per_head(shift_ptr + s, S, HEADS, BLOCK_H)
        v += tap * _moved(gated_ptr, s - S // 2, rows, HEADS, BLOCK_H, BLOCK_R)
    return v


@triton.jit
def _power(ratio, exponent):
    """ratio^exponent for ratio in [0, 1]; 0^0 = 1. NaN stays.

    In doubles: the rounding of a logarithm grows with it in the power.
    """
    zero = ratio == 0.0
    power = tl.exp2(exponent * tl.log2(tl.where(zero, 1.0, ratio).to(tl.float64)))
    return tl.where(zero & (exponent != 0.0), 0.0, power.to(tl.float32))


@triton.jit
def _ratio(v):
    """v / its largest, negative ones as 0, and that largest; 1 where there is nothing."""
    v = tl.where(v < 0.0, 0.0, v)
    largest = tl.max(v, 1)[:, None]
    largest = tl.where(largest == 0.0, 1.0, largest)
    return tl.div_rn(v, largest), largest


@triton.jit
def _sum_or_one(power):
    total = tl.sum(power, 1)[:, None]
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def locate(
    content, previous_ptr, gate_ptr, shift_ptr, sharpen_ptr,  # in:  [H, N], [H], [H, S], [H]
    gated_ptr, weight_ptr,  # scratch [H, N] fp32; out: [H, N]
    rows,
    HEADS: tl.constexpr, S: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    previous = load_heads(previous_ptr, rows, HEADS, BLOCK_H, BLOCK_R)
    gate = _per_head(gate_ptr, 1, HEADS, BLOCK_H)
    v = _shifted(content, previous, gate, shift_ptr, gated_ptr, rows, HEADS, S, BLOCK_H, BLOCK_R)
    ratio, _ = _ratio(v)
    power = _power(ratio, _per_head(sharpen_ptr, 1, HEADS, BLOCK_H))
    _, live = heads_of(rows, HEADS, BLOCK_H, BLOCK_R)
    power = tl.where(live, power, 0.0)
    weight = tl.div_rn(power, _sum_or_one(power))
    store_heads(weight_ptr, weight, rows, HEADS, BLOCK_H, BLOCK_R)


@triton.jit
def _sharpen_backward(
    v, grad, sharpen, d_sharpen_ptr,
    rows, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradient of the shifted weights v from that of the weights."""
    _, live = heads_of(rows, HEADS, BLOCK_H, BLOCK_R)
    ratio, largest = _ratio(v)
    power = tl.where(live, _power(ratio, sharpen), 0.0)
    total = _sum_or_one(power)
    grad = centred(power, grad)
    log = tl.log(tl.where(ratio == 0.0, 1.0, ratio))
    d_sharpen = sum_wide(grad * tl.div_rn(power, total), log, 1)
    _store_per_head(d_sharpen_ptr, d_sharpen, 1, HEADS, BLOCK_H)
    d = sharpen * grad * _power(ratio, sharpen - 1.0) / total / largest
    nowhere = tl.max(v, 1)[:, None] <= 0.0
    return tl.where(live & (v >= 0.0) & ~nowhere, d, 0.0)  # at 0 it passes, as in a clamp


@triton.jit
def locate_backward(
    grad, content, previous_ptr, gate_ptr, shift_ptr, sharpen_ptr,  # in: as `locate`
    gated_ptr, moved_ptr,  # scratch [H, N] fp32 x2
    d_previous_ptr, d_gate_ptr, d_shift_ptr, d_sharpen_ptr,  # out: [H, N], [H], [H, S], [H]
    rows,
    HEADS: tl.constexpr, S: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Gradient of the content weights."""
    previous = load_heads(previous_ptr, rows, HEADS, BLOCK_H, BLOCK_R)
    gate = _per_head(gate_ptr, 1, HEADS, BLOCK_H)
    v = _shifted(content, previous, gate, shift_ptr, gated_ptr, rows, HEADS, S, BLOCK_H, BLOCK_R)
    sharpen = _per_head(sharpen_ptr, 1, HEADS, BLOCK_H)
    d_v = _sharpen_backward(v, grad, sharpen, d_sharpen_ptr, rows, HEADS, BLOCK_H, BLOCK_R)
    store_heads(moved_ptr, d_v, rows, HEADS, BLOCK_H, BLOCK_R)
    tl.debug_barrier()  # as in _shifted
    d = tl.zeros([BLOCK_H, BLOCK_R], tl.float32)
    for s in range(S):
        gated = _moved(gated_ptr, s - S // 2, rows, HEADS, BLOCK_H, BLOCK_R)
        _store_per_head(d_shift_ptr + s, sum_wide(d_v, gated, 1), S, HEADS, BLOCK_H)
        tap = _per_head(shift_ptr + s, S, HEADS, BLOCK_H)
        d += tap * _moved(moved_ptr, S // 2 - s, rows, HEADS, BLOCK_H, BLOCK_R)
    _store_per_head(d_gate_ptr, sum_wide(d, content - previous, 1), 1, HEADS, BLOCK_H)
    store_heads(d_previous_ptr, (1.0 - gate) * d, rows, HEADS, BLOCK_H, BLOCK_R)
    return gate * d


# Moves 3 * B * H * N numbers, and B * H * N through scratch.
@triton.jit
def _location_addressing_fwd_kernel(
    content_ptr, previous_ptr, gate_ptr, shift_ptr, sharpen_ptr,  # in: as in the schema
    gated_ptr, weight_ptr,  # scratch [B, H, N] fp32; out: [B, H, N]
    rows,
    S: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    place = head * rows
    locate(
        load_heads(content_ptr + place, rows, 1, 1, BLOCK_R), previous_ptr + place,
        gate_ptr + head, shift_ptr + head * S, sharpen_ptr + head,
        gated_ptr + place, weight_ptr + place, rows, 1, S, 1, BLOCK_R,
    )  # fmt: skip


# Moves 5 * B * H * N numbers, and 2 * B * H * N through scratch.
@triton.jit
def _location_addressing_bwd_kernel(
    grad_ptr, content_ptr, previous_ptr, gate_ptr, shift_ptr, sharpen_ptr,  # in: as in the schema
    gated_ptr, moved_ptr,  # scratch [B, H, N] fp32 x2
    d_content_ptr, d_previous_ptr, d_gate_ptr, d_shift_ptr, d_sharpen_ptr,  # out
    rows,
    S: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    place = head * rows
    d_content = locate_backward(
        load_heads(grad_ptr + place, rows, 1, 1, BLOCK_R),
        load_heads(content_ptr + place, rows, 1, 1, BLOCK_R), previous_ptr + place,
        gate_ptr + head, shift_ptr + head * S, sharpen_ptr + head,
        gated_ptr + place, moved_ptr + place,
        d_previous_ptr + place, d_gate_ptr + head, d_shift_ptr + head * S, d_sharpen_ptr + head,
        rows, 1, S, 1, BLOCK_R,
    )  # fmt: skip
    store_heads(d_content_ptr + place, d_content, rows, 1, 1, BLOCK_R)


def location_addressing(
    content: torch.Tensor,
    previous: torch.Tensor,
    gate: torch.Tensor,
    shift: torch.Tensor,
    sharpen: torch.Tensor,
) -> torch.Tensor:
    """Launch the forward: weights [B, H, N]. One program per head."""
    batch, heads, rows = content.shape
    weight = content.new_empty(content.shape)
    if weight.numel() == 0:
        return weight
    with torch.cuda.device_of(content):
        _location_addressing_fwd_kernel[(batch * heads,)](
            *contiguous(content, previous, gate, shift, sharpen),
            *(floats(weight, *weight.shape), weight, rows),
            S=shift.shape[2],
            **whole_rows(rows),
        )
    return weight


def location_addressing_backward(
    grad: torch.Tensor,
    content: torch.Tensor,
    previous: torch.Tensor,
    gate: torch.Tensor,
    shift: torch.Tensor,
    sharpen: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of content, previous, gate, shift, sharpen."""
    batch, heads, rows = content.shape
    inputs = (content, previous, gate, shift, sharpen)
    out = tuple(x.new_empty(x.shape) for x in inputs)
    if grad.numel() == 0:
        return tuple(x.zero_() for x in out)
    with torch.cuda.device_of(content):
        _location_addressing_bwd_kernel[(batch * heads,)](
            *contiguous(grad, *inputs),
            *(*floats(weight, 2, *weight.shape), *out, rows),
            S=shift.shape[2],
            **whole_rows(rows),
        )
    return out
