"""Triton implementation of stmeta::temporal_link. Reference: stmeta.ops.temporal_link.

A program takes some rows of one head's links, a chunk of columns at a time. Its sums over rows, one
for each column, are partial: the bwd_finish kernel adds those of all programs in order.

Letters: B batch, W write heads, N rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import _common
from ._common import contiguous, floats, load_vector, store_vector, whole_rows

SHARE = 128  # columns of a tile, where there are as many


@triton.jit
def _head_of(head, heads, stride_b, stride_w):
    """Where the links of a head begin."""
    return head // heads * stride_b + head % heads * stride_w


@triton.jit
def _load(
    ptr, first, column, rows, stride_n, stride_m, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr
):  # fmt: skip
    i = first + tl.arange(0, BLOCK_I)
    j = column + tl.arange(0, BLOCK_J)
    place = i.to(tl.int64)[:, None] * stride_n + j.to(tl.int64)[None, :] * stride_m
    live = (i < rows)[:, None] & (j < rows)[None, :]
    return tl.load(ptr + place, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, x, first, column, rows, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr):
    i = first + tl.arange(0, BLOCK_I)
    j = column + tl.arange(0, BLOCK_J)
    live = (i < rows)[:, None] & (j < rows)[None, :]
    tl.store(ptr + i.to(tl.int64)[:, None] * rows + j[None, :], x, mask=live)


@triton.jit
def _off_diagonal(x, first, column, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr):
    i = first + tl.arange(0, BLOCK_I)
    j = column + tl.arange(0, BLOCK_J)
    return tl.where(i[:, None] == j[None, :], 0.0, x)


@triton.jit
def _some(ptr, first, rows, BLOCK: tl.constexpr):
    n = first + tl.arange(0, BLOCK)
    return tl.load(ptr + n, mask=n < rows, other=0.0).to(tl.float32)


# Reads and writes B * W * N * N numbers once.
@triton.jit
def _temporal_link_fwd_kernel(
    link_ptr, precedence_ptr, weight_ptr,  # in:  [B, W, N, N] strided, [B, W, N] x2
    link_out_ptr, precedence_out_ptr,  # out: [B, W, N, N], [B, W, N]
    heads, rows, tiles, stride_b, stride_w, stride_n, stride_m,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64) // tiles
    first = (tl.program_id(0) % tiles) * BLOCK_I
    link_ptr += _head_of(head, heads, stride_b, stride_w)
    link_out_ptr += head * rows * rows
    weight_ptr += head * rows
    precedence_ptr += head * rows
    after = _some(weight_ptr, first, rows, BLOCK_I)[:, None]
    for column in range(0, rows, BLOCK_J):
        behind = _some(weight_ptr, column, rows, BLOCK_J)[None, :]
        precedence = _some(precedence_ptr, column, rows, BLOCK_J)[None, :]
        link = _load(link_ptr, first, column, rows, stride_n, stride_m, BLOCK_I, BLOCK_J)
        link = (1.0 - after - behind) * link + after * precedence
        link = _off_diagonal(link, first, column, BLOCK_I, BLOCK_J)
        _store(link_out_ptr, link, first, column, rows, BLOCK_I, BLOCK_J)
    if first == 0:
        weight = load_vector(weight_ptr, 0, rows, BLOCK_R)
        precedence = load_vector(precedence_ptr, 0, rows, BLOCK_R)
        updated = (1.0 - tl.sum(weight, 0)) * precedence + weight
        store_vector(precedence_out_ptr, updated, head, rows, BLOCK_R)


# With G the gradient of the new links, 0 on the diagonal, and g that of the new precedence:
#   dL[i, j] = (1 - w[i] - w[j]) G[i, j]
#   dw[i]    = sum_j G[i, j] (p[j] - L[i, j]) - sum_k G[k, i] L[k, i] + g[i] - sum_j g[j] p[j]
#   dp[j]    = sum_i w[i] G[i, j] + (1 - sum w) g[j]
# Reads 2 * B * W * N * N numbers and writes half as many, and a sixteenth of B * W * N * N floats
# of partial sums.
@triton.jit
def _temporal_link_bwd_kernel(
    grad_ptr, link_ptr,  # in:  [B, W, N, N] x2, strided
    precedence_ptr, weight_ptr,  # in:  [B, W, N] x2
    d_link_ptr,  # out: [B, W, N, N]
    sums_ptr, parts_ptr,  # scratch, fp32: [B, W, N]: sum_j G (p - L); [B, W, tiles, 2, N]
    heads, rows, tiles,
    grad_b, grad_w, grad_n, grad_m, stride_b, stride_w, stride_n, stride_m,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64) // tiles
    first = (tl.program_id(0) % tiles) * BLOCK_I
    grad_ptr += _head_of(head, heads, grad_b, grad_w)
    link_ptr += _head_of(head, heads, stride_b, stride_w)
    d_link_ptr += head * rows * rows
    weight_ptr += head * rows
    precedence_ptr += head * rows
    parts_ptr += tl.program_id(0).to(tl.int64) * 2 * rows
    after = _some(weight_ptr, first, rows, BLOCK_I)[:, None]
    sums = tl.zeros([BLOCK_I], tl.float32)
    for column in range(0, rows, BLOCK_J):
        behind = _some(weight_ptr, column, rows, BLOCK_J)[None, :]
        precedence = _some(precedence_ptr, column, rows, BLOCK_J)[None, :]
        grad = _load(grad_ptr, first, column, rows, grad_n, grad_m, BLOCK_I, BLOCK_J)
        grad = _off_diagonal(grad, first, column, BLOCK_I, BLOCK_J)
        kept = grad * _load(link_ptr, first, column, rows, stride_n, stride_m, BLOCK_I, BLOCK_J)
        sums += tl.sum(grad * precedence - kept, 1)
        j = column + tl.arange(0, BLOCK_J)
        tl.store(parts_ptr + j, tl.sum(kept, 0), mask=j < rows)
        tl.store(parts_ptr + rows + j, tl.sum(after * grad, 0), mask=j < rows)
        grad = (1.0 - after - behind) * grad
        _store(d_link_ptr, grad, first, column, rows, BLOCK_I, BLOCK_J)
    i = first + tl.arange(0, BLOCK_I)
    tl.store(sums_ptr + head * rows + i, sums, mask=i < rows)


# Reads the partial sums once: B * W * tiles * 2 * N floats.
@triton.jit
def _temporal_link_bwd_finish_kernel(
    grad_ptr, precedence_ptr, weight_ptr,  # in:  [B, W, N] x3, grad of the new precedence
    sums_ptr, parts_ptr,  # in:  as _temporal_link_bwd_kernel leaves them
    d_precedence_ptr, d_weight_ptr,  # out: [B, W, N] x2
    rows, tiles,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    grad = load_vector(grad_ptr, head, rows, BLOCK_R)
    weight = load_vector(weight_ptr, head, rows, BLOCK_R)
    shared = tl.sum(grad * load_vector(precedence_ptr, head, rows, BLOCK_R), 0)
    kept = tl.zeros([BLOCK_R], tl.float32)
    added = tl.zeros([BLOCK_R], tl.float32)
    for tile in range(tiles):
        part = (head * tiles + tile) * 2
        kept += load_vector(parts_ptr, part, rows, BLOCK_R)
        added += load_vector(parts_ptr, part + 1, rows, BLOCK_R)
    d_weight = load_vector(sums_ptr, head, rows, BLOCK_R) - kept + (grad - shared)
    store_vector(d_weight_ptr, d_weight, head, rows, BLOCK_R)
    added += (1.0 - tl.sum(weight, 0)) * grad
    store_vector(d_precedence_ptr, added, head, rows, BLOCK_R)


def _cut(rows: int) -> tuple[int, dict[str, int]]:
    """Tiles of a head, and the sizes of one: 32 rows, 128 columns at a time."""
    block = triton.next_power_of_2(rows)
    block_i = min(block, max(1, _common.TILE // SHARE))
    block_j = min(block, SHARE)
    warps = max(1, min(4, block_i * block_j // 1024))
    return triton.cdiv(rows, block_i), {"BLOCK_I": block_i, "BLOCK_J": block_j, "num_warps": warps}


def temporal_link(
    link: torch.Tensor, precedence: torch.Tensor, write_weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward: new links [B, W, N, N], new precedence [B, W, N]."""
    batch, heads, rows = precedence.shape
    out = link.new_empty(link.shape), precedence.new_empty(precedence.shape)
    if precedence.numel() == 0:
        return out
    tiles, blocks = _cut(rows)
    with torch.cuda.device_of(link):
        _temporal_link_fwd_kernel[(batch * heads * tiles,)](
            *(link, *contiguous(precedence, write_weight), *out),
            *(heads, rows, tiles, *link.stride()),
            BLOCK_R=whole_rows(rows)["BLOCK_R"],
            **blocks,
        )
    return out


def temporal_link_backward(
    grad_link: torch.Tensor,
    grad_precedence: torch.Tensor,
    link: torch.Tensor,
    precedence: torch.Tensor,
    write_weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of link, precedence, write_weight."""
    batch, heads, rows = precedence.shape
    d_link, d_precedence, d_weight = (
        x.new_empty(x.shape) for x in (link, precedence, write_weight)
    )
    if precedence.numel() == 0:
        return d_link, d_precedence, d_weight
    tiles, blocks = _cut(rows)
    sums, parts = floats(link, batch, heads, rows), floats(link, batch, heads, tiles, 2, rows)
    grad, precedence, weight = contiguous(grad_precedence, precedence, write_weight)
    with torch.cuda.device_of(link):
        _temporal_link_bwd_kernel[(batch * heads * tiles,)](
            *(grad_link, link, precedence, weight, d_link, sums, parts),
            *(heads, rows, tiles, *grad_link.stride(), *link.stride()),
            **blocks,
        )
        _temporal_link_bwd_finish_kernel[(batch * heads,)](
            *(grad, precedence, weight, sums, parts, d_precedence, d_weight, rows, tiles),
            **whole_rows(rows),
        )
    return d_link, d_precedence, d_weight
