"""Triton implementation of stmeta::masked_patch_loss. Reference: stmeta.ops.masked_patch_loss.

One program owns one row of the prediction. It reads the row's patch as patch_shift does (with no
shift), so that the target and its two-pass statistics live in registers only. Each row leaves one
error; they are added in a fixed order, and counted, on the device.

Letters: B batch, R rows of the prediction (Q with ids, N with a mask), F = t*p*p*C features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .gather_tokens import dense_rows
from .patch_shift import _constants, _contiguous, _load_token, _tile

SUM_BLOCK = 4096  # errors that a program of the sum adds


# Reads B * R * F numbers and as many bytes; rows that do not count are not read.
@triton.jit
def _masked_patch_loss_fwd_kernel(
    pred_ptr, video_ptr, ids_ptr, mask_ptr,  # in:  [B, R, F], [B, C, T, H, W], [B, R] x2 or None
    mean_ptr, rstd_ptr, errors_ptr,  # out: [B, R] x2 fp32, [2, B * R] fp32: error, counts
    total, rows, frames, height, width, pred_b, pred_r,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    eps,
    NORM: tl.constexpr,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    error = 0.0
    mean = 0.0
    rstd = 1.0
    counts = 1
    if mask_ptr is not None:
        counts = tl.load(mask_ptr + row).to(tl.int32)
    if counts != 0:
        x, feature, exists = _load_token(
            video_ptr, ids_ptr, row, 0, rows, frames, height, width,
            stride_b, stride_c, stride_t, stride_y, stride_x,
            TUBELET, PATCH, CHANNELS, SHIFTS, SCALE, OFFSET, BLOCK_J, BLOCK_Q,
        )  # fmt: skip
        if NORM:
            FEATURES: tl.constexpr = TUBELET * PATCH * PATCH * CHANNELS
            mean = tl.sum(x) / FEATURES
            x = tl.where(exists, x - mean, 0.0)
            rstd = tl.rsqrt(tl.sum(x * x) / (FEATURES - 1) + eps)
            x *= rstd
        pred_row = pred_ptr + row // rows * pred_b + row % rows * pred_r
        pred = tl.load(pred_row + feature, mask=exists, other=0.0).to(tl.float32)
        difference = tl.where(exists, pred - x, 0.0)
        error = tl.sum(difference * difference)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    tl.store(errors_ptr + row, error)
    tl.store(errors_ptr + total + row, counts)


# Reads 2 * total numbers once.
@triton.jit
def _masked_patch_loss_fwd_blocks_kernel(
    errors_ptr,  # in:  [2, total] fp32
    sums_ptr,  # out: [2, blocks] fp32
    total,
    BLOCK: tl.constexpr,
):  # fmt: skip
    half = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(errors_ptr + half * total + i, mask=i < total, other=0.0)
    tl.store(sums_ptr + half * tl.num_programs(0) + tl.program_id(0), tl.sum(value, 0))


@triton.jit
def _masked_patch_loss_fwd_finish_kernel(
    sums_ptr,  # in:  [2, blocks] fp32: errors, counting rows
    loss_ptr, inverse_ptr,  # out: [] x2 fp32
    blocks,
    FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    error = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    for first in range(0, blocks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        error += tl.load(sums_ptr + i, mask=i < blocks, other=0.0)
        count += tl.load(sums_ptr + blocks + i, mask=i < blocks, other=0.0)
    numbers = tl.sum(count, 0) * FEATURES
    inverse = tl.where(numbers > 0, 1.0 / tl.maximum(numbers, 1.0), 0.0)
    tl.store(inverse_ptr, inverse)
    tl.store(loss_ptr, tl.sum(error, 0) * inverse)


# Reads as the forward does, writes B * R * F numbers.
@triton.jit
def _masked_patch_loss_bwd_kernel(
    grad_ptr, inverse_ptr,  # in:  [] x2 fp32
    pred_ptr, video_ptr, ids_ptr, mask_ptr, mean_ptr, rstd_ptr,  # in: as the forward's
    out_ptr,  # out: [B, R, F]
    rows, frames, height, width, pred_b, pred_r,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    FEATURES: tl.constexpr = TUBELET * PATCH * PATCH * CHANNELS
    out_row = out_ptr + row * FEATURES
    counts = 1
    if mask_ptr is not None:
        counts = tl.load(mask_ptr + row).to(tl.int32)
    if counts != 0:
        x, feature, exists = _load_token(
            video_ptr, ids_ptr, row, 0, rows, frames, height, width,
            stride_b, stride_c, stride_t, stride_y, stride_x,
            TUBELET, PATCH, CHANNELS, SHIFTS, SCALE, OFFSET, BLOCK_J, BLOCK_Q,
        )  # fmt: skip
        target = (x - tl.load(mean_ptr + row)) * tl.load(rstd_ptr + row)
        pred_row = pred_ptr + row // rows * pred_b + row % rows * pred_r
        pred = tl.load(pred_row + feature, mask=exists, other=0.0).to(tl.float32)
        factor = 2.0 * tl.load(grad_ptr) * tl.load(inverse_ptr)
        out = factor * (pred - target)
        tl.store(out_row + feature, out.to(out_ptr.dtype.element_ty), mask=exists)
    else:
        f = tl.arange(0, BLOCK_J * BLOCK_Q)
        zero = tl.zeros([BLOCK_J * BLOCK_Q], out_ptr.dtype.element_ty)
        tl.store(out_row + f, zero, mask=f < FEATURES)


def masked_patch_loss(
    pred: torch.Tensor,
    video: torch.Tensor,
    ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    patch: list[int],
    scale: list[float],
    offset: list[float],
    norm_pix: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward: loss [], mean and rstd [B, R], 1 / counting numbers []; all fp32."""
    batch, rows, features = pred.shape
    total = batch * rows
    mean, rstd = (pred.new_empty(batch, rows, dtype=torch.float32) for _ in range(2))
    if total == 0:
        loss, inverse = (pred.new_zeros((), dtype=torch.float32) for _ in range(2))
        return loss, mean, rstd, inverse
    loss, inverse = (pred.new_empty((), dtype=torch.float32) for _ in range(2))
    pred = dense_rows(pred)
    errors = mean.new_empty(2, total)
    with torch.cuda.device_of(pred):
        _masked_patch_loss_fwd_kernel[(total,)](
            *(pred, video, *_rows(ids, mask), mean, rstd, errors, total, rows, *video.shape[2:]),
            *(*pred.stride()[:2], *video.stride(), eps),
            NORM=norm_pix,
            **_options(video, patch, scale, offset),
        )
        blocks = triton.cdiv(total, SUM_BLOCK)
        if blocks > 1:
            sums = errors.new_empty(2, blocks)
            _masked_patch_loss_fwd_blocks_kernel[(blocks, 2)](
                errors, sums, total, BLOCK=SUM_BLOCK, num_warps=8
            )
            errors = sums
        _masked_patch_loss_fwd_finish_kernel[(1,)](
            errors, loss, inverse, errors.shape[1], FEATURES=features, BLOCK=1024, num_warps=4
        )
    return loss, mean, rstd, inverse


def masked_patch_loss_backward(
    grad: torch.Tensor,
    pred: torch.Tensor,
    video: torch.Tensor,
    ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    inverse: torch.Tensor,
    patch: list[int],
    scale: list[float],
    offset: list[float],
) -> torch.Tensor:
    """Launch the backward: the gradient of pred, [B, R, F]; 0 in rows that do not count."""
    batch, rows, features = pred.shape
    out = pred.new_empty(batch, rows, features)
    if out.numel() == 0:
        return out
    pred = dense_rows(pred)
    with torch.cuda.device_of(pred):
        _masked_patch_loss_bwd_kernel[(batch * rows,)](
            *(grad, inverse, pred, video, *_rows(ids, mask)),
            *(mean.contiguous(), rstd.contiguous(), out, rows, *video.shape[2:]),
            *(*pred.stride()[:2], *video.stride()),
            **_options(video, patch, scale, offset),
        )
    return out


def _rows(ids, mask):
    """Tokens of the rows and which rows count; one of them is None."""
    return _contiguous(ids), None if mask is None else mask.contiguous().view(torch.uint8)


def _options(video, patch, scale, offset) -> dict:
    shifts = [0, 0, 0]
    return {
        **_constants(video, patch, shifts, scale, offset),
        **_tile(video.shape[1], patch, shifts, None, 8),  # 16 a thread spill with a mask
    }
