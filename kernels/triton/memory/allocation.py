"""Triton implementation of stmeta::allocation. Reference: stmeta.ops.allocation.

A program takes a row of the batch: it sorts keys of 8 bytes, the usage first and then the row's
number, and scans the products. Threads reach each other's rows through the order in global memory.
With more than FORWARD rows torch's stable sort finds the order, and the scan goes chunk by chunk.

Letters: B batch, N rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import floats, whole_rows

FORWARD = 2048  # rows that a program sorts
CHUNK = 1024  # rows of a step of the scan


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def _chain(scale, shift, next_scale, next_shift):
    """x -> shift + scale * x, and then the next one."""
    return next_scale * scale, next_shift + next_scale * shift


@triton.jit
def _sort(usage_ptr, order_ptr, rows, BLOCK_R: tl.constexpr):
    """Rows by usage, the lower one on a tie. NaN comes last, as in torch's sort."""
    n = tl.arange(0, BLOCK_R)
    usage = tl.load(usage_ptr + n, mask=n < rows, other=0.0).to(tl.float32)
    bits = tl.where(usage == 0.0, 0.0, usage).to(tl.int32, bitcast=True)  # -0 is 0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # sorts as the number does
    key = tl.where(usage != usage, 0x7FFFFFFE, key)
    key = tl.where(n < rows, key, 0x7FFFFFFF)
    items = tl.sort((key.to(tl.int64) << 32) | n.to(tl.int64))
    tl.store(order_ptr + n, items.to(tl.int32), mask=n < rows)


@triton.jit
def _gather(ptr, order_ptr, j, rows, other):
    """The number of the j-th least used row; `other` where there is no such row."""
    live = (j >= 0) & (j < rows)
    n = tl.load(order_ptr + j, mask=live, other=0)
    return tl.load(ptr + n, mask=live, other=other).to(tl.float64)


@triton.jit
def _products(usage_ptr, order_ptr, first, rows, last_product, BLOCK: tl.constexpr):
    """P[j] = prod_{i < j} u[i] of a chunk, from the last one of the chunk before."""
    j = first + tl.arange(0, BLOCK)
    return last_product * tl.associative_scan(
        _gather(usage_ptr, order_ptr, j - 1, rows, 1.0), 0, _multiply
    )


@triton.jit
def _pick(x, place, BLOCK: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BLOCK) == place, x, 0.0), 0)


# Moves 2 * B * N numbers, and B * N of int32; in doubles: hundreds of roundings would add up.
@triton.jit
def _allocation_fwd_kernel(
    usage_ptr,  # in:  [B, N]
    order_ptr, out_ptr,  # out: int32 [B, N], or in without SORT; [B, N]
    rows,
    SORT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * rows
    usage_ptr, order_ptr, out_ptr = usage_ptr + place, order_ptr + place, out_ptr + place
    if SORT:
        _sort(usage_ptr, order_ptr, rows, BLOCK_R)
        tl.debug_barrier()  # threads read what others have written
    product = tl.full([], 1.0, tl.float64)
    for first in range(0, rows, BLOCK):
        before = _products(usage_ptr, order_ptr, first, rows, product, BLOCK)
        j = first + tl.arange(0, BLOCK)
        usage = _gather(usage_ptr, order_ptr, j, rows, 0.0)
        n = tl.load(order_ptr + j, mask=j < rows, other=0)
        tl.store(out_ptr + n, ((1.0 - usage) * before).to(tl.float32), mask=j < rows)
        product = _pick(before, BLOCK - 1, BLOCK)


# With S[j] = sum_{k > j} g[k] (1 - u[k]) prod_{j < i < k} u[i], rows in order:
# du[j] = P[j] (S[j] - g[j]). No quotient, as u may be 0.
# Moves 3 * B * N numbers and B * N of int32, and B * N through scratch.
@triton.jit
def _allocation_bwd_kernel(
    grad_ptr, usage_ptr, order_ptr,  # in:  [B, N], [B, N], int32 [B, N]
    before_ptr, out_ptr,  # scratch [B, N] fp32; out: [B, N]
    rows,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * rows
    grad_ptr, usage_ptr, order_ptr = grad_ptr + place, usage_ptr + place, order_ptr + place
    before_ptr, out_ptr = before_ptr + place, out_ptr + place
    product = tl.full([], 1.0, tl.float64)
    for first in range(0, rows, BLOCK):
        before = _products(usage_ptr, order_ptr, first, rows, product, BLOCK)
        j = first + tl.arange(0, BLOCK)
        tl.store(before_ptr + j, before.to(tl.float32), mask=j < rows)
        product = _pick(before, BLOCK - 1, BLOCK)
    tl.debug_barrier()
    after = tl.full([], 0.0, tl.float64)
    for first in range(0, rows, BLOCK):
        j = rows - 1 - first - tl.arange(0, BLOCK)  # from the last row down
        # Of row j + 1: x -> g (1 - u) + u x, for which the rows past the end leave x as it is.
        scale = _gather(usage_ptr, order_ptr, j + 1, rows, 1.0)
        shift = _gather(grad_ptr, order_ptr, j + 1, rows, 0.0) * (1.0 - scale)
        scale, shift = tl.associative_scan((scale, shift), 0, _chain)
        sums = shift + scale * after
        grad = _gather(grad_ptr, order_ptr, j, rows, 0.0)
        before = tl.load(before_ptr + j, mask=j >= 0, other=0.0)
        n = tl.load(order_ptr + j, mask=j >= 0, other=0)
        tl.store(out_ptr + n, (before * (sums - grad)).to(tl.float32), mask=j >= 0)
        after = _pick(sums, BLOCK - 1, BLOCK)


def _chunk(rows: int) -> dict[str, int]:
    block = min(triton.next_power_of_2(max(1, rows)), CHUNK)
    return {"BLOCK": block, "num_warps": max(1, min(4, block // 64))}


def allocation(usage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward: weights [B, N], and int32 [B, N], the rows by usage."""
    batch, rows = usage.shape
    usage, out = usage.contiguous(), usage.new_empty(usage.shape)
    sort = rows <= FORWARD
    if sort:
        order = usage.new_empty(usage.shape, dtype=torch.int32)
    else:
        order = usage.argsort(dim=1, stable=True).to(torch.int32)
    if usage.numel() == 0:
        return out, order
    options = _chunk(rows) | {"BLOCK_R": 1} | (whole_rows(rows) if sort else {})
    with torch.cuda.device_of(usage):
        _allocation_fwd_kernel[(batch,)](usage, order, out, rows, SORT=sort, **options)
    return out, order


def allocation_backward(
    grad: torch.Tensor, usage: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Launch the backward: gradient of the usage."""
    batch, rows = usage.shape
    out = usage.new_empty(usage.shape)
    if usage.numel() == 0:
        return out
    with torch.cuda.device_of(usage):
        _allocation_bwd_kernel[(batch,)](
            *(grad.contiguous(), usage.contiguous(), order.contiguous()),
            *(floats(usage, batch, rows), out, rows),
            **_chunk(rows),
        )
    return out
