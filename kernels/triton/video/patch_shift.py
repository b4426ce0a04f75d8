"""Triton implementation of stmeta::patch_shift. Reference: stmeta.ops.patch_shift.

One program owns one token. Its F = t*p*p*S*C features form a tile [t*p*p, S*C] that stays in
registers, so LayerNorm needs no second read. A feature's address and its test against the frame are
the sum of a part for its row (pixel) and one for its column (shift and channel): no divisions.

Letters: B batch, C channels, T frames, H W pixels, (t, p, p) tubelet, S shifts, N tokens of a
sample, K of them computed (K = N without ids_keep), J = t*p*p and Q = S*C, rounded up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._reduce import column_sum

NUMBERS_PER_PROGRAM = 256  # of the video gradient
PROGRAMS_PER_MULTIPROCESSOR = 8  # of the weight gradient: each leaves one partial sum


@triton.jit
def _load_token(
    video_ptr, ids_ptr,  # in: [B, C, T, H, W] through its strides, [B, K] or None
    row, first, kept,  # which of the B * K tokens; first of its pixels that we want; K
    frames, height, width,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Features of one token, fp32 [J, Q]; their places in a row of F, [J, Q]; which exist."""
    j = first + tl.arange(0, BLOCK_J)
    q = tl.arange(0, BLOCK_Q)
    column_t = tl.zeros_like(q)
    column_y = tl.zeros_like(q)
    column_x = tl.zeros_like(q)
    for s in tl.static_range(len(SHIFTS) // 3):
        column_t = tl.where(q // CHANNELS == s, SHIFTS[3 * s], column_t)
        column_y = tl.where(q // CHANNELS == s, SHIFTS[3 * s + 1], column_y)
        column_x = tl.where(q // CHANNELS == s, SHIFTS[3 * s + 2], column_x)
    scale = _per_channel(q % CHANNELS, SCALE)
    offset = _per_channel(q % CHANNELS, OFFSET)

    batch = row // kept
    token = row % kept
    if ids_ptr is not None:
        token = tl.load(ids_ptr + row)
    token = token.to(tl.int32)
    columns = width // PATCH
    rows = height // PATCH
    row_t = token // (rows * columns) * TUBELET + j // (PATCH * PATCH)
    row_y = token // columns % rows * PATCH + j // PATCH % PATCH
    row_x = token % columns * PATCH + j % PATCH

    t = row_t[:, None] + column_t[None, :]
    y = row_y[:, None] + column_y[None, :]
    x = row_x[:, None] + column_x[None, :]
    QUANTITY: tl.constexpr = len(SHIFTS) // 3 * CHANNELS
    exists = (j < TUBELET * PATCH * PATCH)[:, None] & (q < QUANTITY)[None, :]
    inside = (t >= 0) & (t < frames) & (y >= 0) & (y < height) & (x >= 0) & (x < width) & exists
    place = batch * stride_b + (
        row_t.to(tl.int64) * stride_t
        + row_y.to(tl.int64) * stride_y
        + row_x.to(tl.int64) * stride_x
    )
    step = (
        (q % CHANNELS).to(tl.int64) * stride_c
        + column_t.to(tl.int64) * stride_t
        + column_y.to(tl.int64) * stride_y
        + column_x.to(tl.int64) * stride_x
    )
    value = tl.load(video_ptr + (place[:, None] + step[None, :]), mask=inside, other=0)
    value = value.to(tl.float32) * scale[None, :] + offset[None, :]
    feature = j[:, None] * QUANTITY + q[None, :]
    return tl.where(inside, value, 0.0), feature, exists


@triton.jit
def _per_channel(c, VALUES: tl.constexpr):
    """VALUES[c] in fp32, for a short tuple of constants."""
    out = tl.zeros_like(c).to(tl.float32)
    for i in tl.static_range(len(VALUES)):
        out = tl.where(c == i, VALUES[i], out)
    return out


# Reads each pixel S times (from L1 and L2 after the first), writes B * K * F features.
@triton.jit
def _patch_shift_fwd_kernel(
    video_ptr, ids_ptr, weight_ptr, bias_ptr,  # in:  [B, C, T, H, W], then [B, K], [F] x2 or None
    tokens_ptr, mean_ptr, rstd_ptr,  # out: [B, K, F], [B, K] x2 fp32 (with weight only)
    kept, frames, height, width,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    eps,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, feature, exists = _load_token(
        video_ptr, ids_ptr, row, 0, kept, frames, height, width,
        stride_b, stride_c, stride_t, stride_y, stride_x,
        TUBELET, PATCH, CHANNELS, SHIFTS, SCALE, OFFSET, BLOCK_J, BLOCK_Q,
    )  # fmt: skip
    FEATURES: tl.constexpr = TUBELET * PATCH * PATCH * (len(SHIFTS) // 3) * CHANNELS
    if weight_ptr is not None:
        mean = tl.sum(x) / FEATURES
        centred = tl.where(exists, x - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred) / FEATURES + eps)
        weight = tl.load(weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + feature, mask=exists, other=0.0).to(tl.float32)
        x = centred * rstd * weight + bias
        tl.store(mean_ptr + row, mean)
        tl.store(rstd_ptr + row, rstd)
    out_ptr = tokens_ptr + row * FEATURES
    tl.store(out_ptr + feature, x.to(tokens_ptr.dtype.element_ty), mask=exists)


# Reads the gradient once and the video as the forward does; writes 2 * F sums per program.
@triton.jit
def _patch_shift_bwd_rows_kernel(
    grad_ptr, video_ptr, ids_ptr, weight_ptr,  # in: [B, K, F] through its strides, as forward
    mean_ptr, rstd_ptr,  # in:  [B, K] x2 fp32
    row_means_ptr,  # out: [chunks, B * K, 2] fp32 or None: means over a token of g*w, g*w*xhat
    partial_ptr,  # out: [2, programs, F] fp32 or None: sums over our tokens of g*xhat, g
    total, kept, frames, height, width,
    grad_b, grad_k, grad_f,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = TUBELET * PATCH * PATCH * (len(SHIFTS) // 3) * CHANNELS
    program = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1).to(tl.int64)  # of the token: all of it would spill
    first = tl.program_id(1) * BLOCK_J
    grad_weight = tl.zeros([BLOCK_J, BLOCK_Q], tl.float32)
    grad_bias = tl.zeros([BLOCK_J, BLOCK_Q], tl.float32)
    for row in range(program, total, tl.num_programs(0)):
        x, feature, exists = _load_token(
            video_ptr, ids_ptr, row, first, kept, frames, height, width,
            stride_b, stride_c, stride_t, stride_y, stride_x,
            TUBELET, PATCH, CHANNELS, SHIFTS, SCALE, OFFSET, BLOCK_J, BLOCK_Q,
        )  # fmt: skip
        xhat = (x - tl.load(mean_ptr + row)) * tl.load(rstd_ptr + row)
        grad_row = grad_ptr + row // kept * grad_b + row % kept * grad_k
        place = feature.to(tl.int64) * grad_f
        grad = tl.load(grad_row + place, mask=exists, other=0.0).to(tl.float32)
        grad_weight += grad * xhat
        grad_bias += grad
        if row_means_ptr is not None:
            weight = tl.load(weight_ptr + feature, mask=exists, other=0.0).to(tl.float32)
            out_ptr = row_means_ptr + 2 * (chunk * total + row)
            tl.store(out_ptr, tl.sum(grad * weight) / FEATURES)
            tl.store(out_ptr + 1, tl.sum(grad * weight * xhat) / FEATURES)
    if partial_ptr is not None:
        j = first + tl.arange(0, BLOCK_J)
        q = tl.arange(0, BLOCK_Q)
        QUANTITY: tl.constexpr = len(SHIFTS) // 3 * CHANNELS
        feature = j[:, None] * QUANTITY + q[None, :]
        exists = (j < TUBELET * PATCH * PATCH)[:, None] & (q < QUANTITY)[None, :]
        out_ptr = partial_ptr + program * FEATURES
        tl.store(out_ptr + feature, grad_weight, mask=exists)
        out_ptr += tl.num_programs(0) * FEATURES
        tl.store(out_ptr + feature, grad_bias, mask=exists)


@triton.jit
def _patch_shift_bwd_slots_kernel(
    ids_ptr,  # in:  [B, K]
    slots_ptr,  # out: [B, N] int32, filled with -1: where in the kept tokens a token lies
    total, kept, tokens,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids_ptr + row, mask=row < total, other=-1)
    slot = (row % kept).to(tl.int32)
    live = (token >= 0) & (token < tokens)  # nobody has checked them on a GPU
    tl.store(slots_ptr + row // kept * tokens + token, slot, mask=live)


# A gather: each pixel sums over the S features that read it, so no two programs meet.
@triton.jit
def _patch_shift_bwd_video_kernel(
    grad_ptr, video_ptr, slots_ptr, weight_ptr,  # in: slots [B, N] or None; the others as above
    mean_ptr, rstd_ptr, row_means_ptr,  # in:  [B, K] x2, [B * K, 2]; with weight only
    out_ptr,  # out: [B, C, T, H, W], contiguous
    kept, frames, height, width,
    grad_b, grad_k, grad_f,
    stride_b, stride_c, stride_t, stride_y, stride_x,
    TUBELET: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    SHIFTS: tl.constexpr, SCALE: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(height * width, BLOCK)
    frame = tl.program_id(0).to(tl.int64) // blocks
    batch = frame // frames
    t = (frame % frames).to(tl.int32)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    y = pixel // width
    x = pixel % width
    c = tl.arange(0, BLOCK_C)
    exists = (pixel < height * width)[:, None] & (c < CHANNELS)[None, :]
    scale = _per_channel(c, SCALE)[None, :]
    offset = _per_channel(c, OFFSET)[None, :]
    if weight_ptr is not None:
        place = y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        place = place[:, None] + (c.to(tl.int64) * stride_c)[None, :]
        place += batch * stride_b + t.to(tl.int64) * stride_t
        value = tl.load(video_ptr + place, mask=exists, other=0).to(tl.float32) * scale + offset

    total = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for s in tl.static_range(len(SHIFTS) // 3):
        # The feature that reads this pixel through shift s belongs to the pixel at -shift.
        ft = t - SHIFTS[3 * s]
        fy = y - SHIFTS[3 * s + 1]
        fx = x - SHIFTS[3 * s + 2]
        read = (fy >= 0) & (fy < height) & (fx >= 0) & (fx < width) & (ft >= 0) & (ft < frames)
        columns = width // PATCH
        rows = height // PATCH
        slot = (ft // TUBELET * rows + fy // PATCH) * columns + fx // PATCH
        if slots_ptr is not None:
            tokens = frames // TUBELET * rows * columns
            slot = tl.load(slots_ptr + batch * tokens + slot, mask=read, other=-1)
            read = read & (slot >= 0)
        slot = slot.to(tl.int64)
        j = (ft % TUBELET * PATCH + fy % PATCH) * PATCH + fx % PATCH
        feature = ((j * (len(SHIFTS) // 3) + s) * CHANNELS)[:, None] + c[None, :]
        live = read[:, None] & exists
        grad_row = grad_ptr + (batch * grad_b + slot * grad_k)[:, None]
        grad = tl.load(grad_row + feature.to(tl.int64) * grad_f, mask=live, other=0.0).to(
            tl.float32
        )
        if weight_ptr is not None:
            row = batch * kept + slot
            mean = tl.load(mean_ptr + row, mask=read, other=0.0)[:, None]
            rstd = tl.load(rstd_ptr + row, mask=read, other=0.0)[:, None]
            first = tl.load(row_means_ptr + 2 * row, mask=read, other=0.0)[:, None]
            second = tl.load(row_means_ptr + 2 * row + 1, mask=read, other=0.0)[:, None]
            weight = tl.load(weight_ptr + feature, mask=live, other=0.0).to(tl.float32)
            xhat = (value - mean) * rstd
            grad = (grad * weight - first - xhat * second) * rstd
        total += tl.where(live, grad, 0.0)
    plane = (batch * CHANNELS + c) * frames + t
    place = plane[None, :] * (height * width) + pixel[:, None]
    tl.store(out_ptr + place, (total * scale).to(out_ptr.dtype.element_ty), mask=exists)


def _constants(video, patch, shifts, scale, offset) -> dict:
    """What all kernels are compiled for."""
    return {
        "TUBELET": patch[0],
        "PATCH": patch[1],
        "CHANNELS": video.shape[1],
        "SHIFTS": tuple(shifts),
        "SCALE": tuple(scale),
        "OFFSET": tuple(offset),
    }


def _tile(channels: int, patch, shifts, largest: int | None, per_thread: int | None) -> dict:
    """A tile [J, Q] of at most `largest` features, and warps for `per_thread` a thread.

    None: all of the token, in 16 or, where that would spill, 8 registers a thread.
    """
    block_q = triton.next_power_of_2(len(shifts) // 3 * channels)
    block_j = triton.next_power_of_2(patch[0] * patch[1] ** 2)
    if largest is not None:
        block_j = min(block_j, max(1, largest // block_q))
    per_thread = per_thread or (16 if block_j * block_q <= 4096 else 8)
    warps = max(1, block_j * block_q // (32 * per_thread))
    return {"BLOCK_J": block_j, "BLOCK_Q": block_q, "num_warps": min(warps, 32)}


def _counts(video, ids_keep, patch) -> tuple[int, int]:
    """N and K."""
    _, _, frames, height, width = video.shape
    tokens = (frames // patch[0]) * (height // patch[1]) * (width // patch[1])
    return tokens, tokens if ids_keep is None else ids_keep.shape[1]


def _contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


def patch_shift(
    video: torch.Tensor,
    ids_keep: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    patch: list[int],
    shifts: list[int],
    scale: list[float],
    offset: list[float],
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward: tokens [B, K, F]; mean and rstd, fp32 [B, K], or [0] without weight."""
    batch, channels = video.shape[:2]
    _, kept = _counts(video, ids_keep, patch)
    features = patch[0] * patch[1] ** 2 * (len(shifts) // 3) * channels
    tokens = video.new_empty(batch, kept, features, dtype=dtype)
    stats = 0 if weight is None else (batch, kept)
    mean, rstd = (video.new_empty(stats, dtype=torch.float32) for _ in range(2))
    if tokens.numel() == 0:
        return tokens, mean, rstd
    with torch.cuda.device_of(video):
        _patch_shift_fwd_kernel[(batch * kept,)](
            *(video, *map(_contiguous, (ids_keep, weight, bias)), tokens, mean, rstd),
            *(kept, *video.shape[2:], *video.stride(), eps),
            **_constants(video, patch, shifts, scale, offset),
            **_tile(channels, patch, shifts, None, None),
        )
    return tokens, mean, rstd


def patch_shift_backward(
    grad: torch.Tensor,
    video: torch.Tensor,
    ids_keep: torch.Tensor | None,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    patch: list[int],
    shifts: list[int],
    scale: list[float],
    offset: list[float],
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of video, weight, bias; [0] where `needs` says no.

    Without atomics: the video gradient is a gather, and each of a fixed number of programs leaves
    one partial sum of the parameter gradients, which are added in order.
    """
    features = grad.shape[2]
    shapes = [video.shape if needs[0] else 0, *(features if need else 0 for need in needs[1:])]
    dtypes = [video.dtype, torch.float32, torch.float32]
    if grad.numel() == 0:
        return tuple(video.new_zeros(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True))
    out = [video.new_empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]
    tensors = (grad, video, *map(_contiguous, (ids_keep, weight, mean, rstd)))
    constants = _constants(video, patch, shifts, scale, offset)
    with torch.cuda.device_of(video):
        row_means = partial = None
        if weight is not None:
            row_means, partial = _backward_rows(tensors, patch, shifts, constants, needs)
        for i in (1, 2):
            if needs[i]:
                out[i] = column_sum(partial[i - 1])
        if needs[0]:
            _backward_video(tensors, patch, row_means, constants, out[0])
    return tuple(out)


def _backward_rows(tensors, patch, shifts, constants, needs):
    """Means of each token that the video gradient needs, and partial sums of the weights'."""
    grad, video, _, _, mean, _ = tensors
    batch, kept, features = grad.shape
    tile = _tile(video.shape[1], patch, shifts, 1024, 4)
    chunks = triton.cdiv(patch[0] * patch[1] ** 2, tile["BLOCK_J"])
    processors = 1
    if video.is_cuda:
        processors = torch.cuda.get_device_properties(video.device).multi_processor_count
    programs = max(1, processors * PROGRAMS_PER_MULTIPROCESSOR // chunks)
    programs = min(batch * kept, programs)
    row_means = mean.new_empty(chunks, batch * kept, 2) if needs[0] else None
    partial = mean.new_empty(2, programs, features) if needs[1] or needs[2] else None
    if row_means is not None or partial is not None:
        _patch_shift_bwd_rows_kernel[(programs, chunks)](
            *(*tensors, row_means, partial, batch * kept, kept, *video.shape[2:]),
            *(*grad.stride(), *video.stride()),
            **constants,
            **tile,
        )
    if row_means is not None and chunks > 1:
        row_means = column_sum(row_means.flatten(1))
    return row_means, partial


def _backward_video(tensors, patch, row_means, constants, out):
    """Write the gradient of the video into `out`, contiguous."""
    grad, video, ids_keep, weight, mean, rstd = tensors
    batch, channels, frames, height, width = video.shape
    tokens, kept = _counts(video, ids_keep, patch)
    slots = None
    if ids_keep is not None:
        slots = ids_keep.new_full((batch, tokens), -1, dtype=torch.int32)
        grid = (triton.cdiv(batch * kept, 256),)
        _patch_shift_bwd_slots_kernel[grid](ids_keep, slots, batch * kept, kept, tokens, BLOCK=256)
    block_c = triton.next_power_of_2(channels)
    block = max(1, NUMBERS_PER_PROGRAM // block_c)
    _patch_shift_bwd_video_kernel[(batch * frames * triton.cdiv(height * width, block),)](
        *(grad, video, slots, weight, mean, rstd, row_means, out),
        *(kept, frames, height, width, *grad.stride(), *video.stride()),
        **constants,
        BLOCK=block,
        BLOCK_C=block_c,
    )
