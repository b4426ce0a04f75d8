"""Triton implementation of stmeta::shifted_patch_embed.

Reference: stmeta.ops.shifted_patch_embed.

Tokens are made for a few samples at a time, as patch_shift makes them, and go through torch's
matrix product; a kernel then adds bias and positions. The backward makes normalised tokens again,
and never forms their gradient: one product and the formulas of one kernel give all gradients.

Letters: B batch, N tokens, K of them kept, D width, F features of a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .gather_tokens import gather_tokens_backward, row_tile
from .patch_shift import _constants, _contiguous, _load_token, _tile, patch_shift

CHUNK = 2**25  # features of tokens that exist at a time


# Reads and writes B * K * D numbers; positions come from L2 but for the first sample.
@triton.jit
def _shifted_patch_embed_fwd_epilogue_kernel(
    bias_ptr, pos_ptr, ids_ptr,  # in:  [D] or None, [N, D] or None, [B, K] or None
    out_ptr,  # in and out: [B, K, D]
    tokens, kept, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(kept, BLOCK_ROWS)
    k = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.program_id(0).to(tl.int64) // blocks * kept + k
    live = (k < kept)[:, None] & (d < width)[None, :]
    place = row[:, None] * width + d[None, :]
    value = tl.load(out_ptr + place, mask=live, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + d, mask=d < width, other=0.0)[None, :]
    if pos_ptr is not None:
        token = k.to(tl.int64)
        if ids_ptr is not None:
            token = tl.load(ids_ptr + row, mask=k < kept, other=-1)
        inside = live & ((token >= 0) & (token < tokens))[:, None]
        value += tl.load(pos_ptr + token[:, None] * width + d[None, :], mask=inside, other=0.0)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=live)


# Reads each pixel S times (from L1 and L2 after the first), writes B * K * F features.
@triton.jit
def _shifted_patch_embed_bwd_normalised_kernel(
    video_ptr, ids_ptr, mean_ptr, rstd_ptr,  # in: [B, C, T, H, W], [B, K] or None, [B, K] x2
    xhat_ptr,  # out: [B, K, F]
    kept, frames, height, width,
    stride_b, stride_c, stride_t, stride_y, stride_x,
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
    xhat = (x - tl.load(mean_ptr + row)) * tl.load(rstd_ptr + row)
    FEATURES: tl.constexpr = TUBELET * PATCH * PATCH * (len(SHIFTS) // 3) * CHANNELS
    place = xhat_ptr + row * FEATURES + feature
    tl.store(place, xhat.to(xhat_ptr.dtype.element_ty), mask=exists)


# Reads D * F numbers twice and writes them once; a program owns some columns.
@triton.jit
def _shifted_patch_embed_bwd_parameters_kernel(
    product_ptr, sums_ptr,  # in:  G [D, F] fp32, s [D] fp32
    norm_weight_ptr, norm_bias_ptr, weight_ptr,  # in:  [F] x2, [D, F]
    grad_norm_weight_ptr, grad_norm_bias_ptr,  # out: [F] x2 fp32 or None
    grad_weight_ptr,  # out: [D, F] fp32 or None
    width, features,
    BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    norm_weight = tl.load(norm_weight_ptr + f, mask=f < features, other=0.0)
    norm_bias = tl.load(norm_bias_ptr + f, mask=f < features, other=0.0)
    of_weight = tl.zeros([BLOCK_D, BLOCK_F], tl.float32)
    of_bias = tl.zeros([BLOCK_D, BLOCK_F], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        live = (d < width)[:, None] & (f < features)[None, :]
        place = d[:, None].to(tl.int64) * features + f[None, :]
        product = tl.load(product_ptr + place, mask=live, other=0.0)
        weight = tl.load(weight_ptr + place, mask=live, other=0.0).to(tl.float32)
        sums = tl.load(sums_ptr + d, mask=d < width, other=0.0)[:, None]
        of_weight += weight * product
        of_bias += weight * sums
        if grad_weight_ptr is not None:
            grad = product * norm_weight[None, :] + sums * norm_bias[None, :]
            tl.store(grad_weight_ptr + place, grad, mask=live)
    if grad_norm_weight_ptr is not None:
        tl.store(grad_norm_weight_ptr + f, tl.sum(of_weight, 0), mask=f < features)
    if grad_norm_bias_ptr is not None:
        tl.store(grad_norm_bias_ptr + f, tl.sum(of_bias, 0), mask=f < features)


def shifted_patch_embed(
    video: torch.Tensor,
    ids_keep: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pos: torch.Tensor | None,
    patch: list[int],
    shifts: list[int],
    scale: list[float],
    offset: list[float],
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward: out [B, K, D]; mean and rstd, fp32 [B, K], or [0] without norm."""
    batch, tokens = video.shape[0], _tokens(video, patch)
    kept = tokens if ids_keep is None else ids_keep.shape[1]
    width = weight.shape[0]
    out = video.new_empty(batch, kept, width, dtype=dtype)
    stats = (0,) if norm_weight is None else (batch, kept)
    mean, rstd = (video.new_empty(stats, dtype=torch.float32) for _ in range(2))
    if out.numel() == 0:
        return out, mean, rstd
    numbers = (patch, shifts, scale, offset, eps, dtype)
    for part in _chunks(batch, kept * weight.shape[1]):
        ids = None if ids_keep is None else ids_keep[part]
        x, *numbers_of_part = patch_shift(video[part], ids, norm_weight, norm_bias, *numbers)
        torch.mm(x.flatten(0, 1), weight.t(), out=out[part].flatten(0, 1))
        if norm_weight is not None:
            mean[part], rstd[part] = numbers_of_part
    if bias is not None or pos is not None:
        tile = row_tile(width)
        rows = batch * triton.cdiv(kept, tile["BLOCK_ROWS"])
        with torch.cuda.device_of(video):
            _shifted_patch_embed_fwd_epilogue_kernel[(rows, triton.cdiv(width, tile["BLOCK_D"]))](
                *(*map(_contiguous, (bias, pos, ids_keep)), out, tokens, kept, width), **tile
            )
    return out, mean, rstd


def shifted_patch_embed_backward(
    grad: torch.Tensor,
    video: torch.Tensor,
    ids_keep: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    patch: list[int],
    shifts: list[int],
    scale: list[float],
    offset: list[float],
    tokens: int,
    needs: list[bool],
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of norm_weight, norm_bias, weight, bias, pos; all fp32.

    [0] where `needs` says no.
    """
    width, features = weight.shape
    shapes = [(features,), (features,), (width, features), (width,), (tokens, width)]
    shapes = [shape if need else (0,) for shape, need in zip(shapes, needs, strict=True)]
    make = grad.new_empty if grad.numel() else grad.new_zeros
    out = [make(shape, dtype=torch.float32) for shape in shapes]
    if grad.numel() == 0:
        return tuple(out)
    grad = grad.contiguous()
    sums = grad.flatten(0, 1).sum(0, dtype=torch.float32)
    if needs[3]:
        out[3] = sums
    if needs[4]:
        _, out[4] = gather_tokens_backward(grad, *_places(grad, ids_keep, tokens), [False, True])
    if not any(needs[:3]):
        return tuple(out)
    product = grad.new_zeros(width, features, dtype=torch.float32)
    if needs[0] or needs[2]:
        numbers = (patch, shifts, scale, offset)
        for part in _chunks(grad.shape[0], grad.shape[1] * features):
            ids = None if ids_keep is None else ids_keep[part]
            stats = None if norm_weight is None else (mean[part], rstd[part])
            xhat = _normalised(video[part], ids, stats, weight.dtype, numbers)
            product += _product(grad[part].flatten(0, 1).t(), xhat)
    if norm_weight is None:
        out[2] = product
        return tuple(out)
    results = [out[i] if needs[i] else None for i in range(3)]
    with torch.cuda.device_of(grad):
        _shifted_patch_embed_bwd_parameters_kernel[(triton.cdiv(features, 16),)](
            *(product, sums, norm_weight.contiguous(), norm_bias.contiguous()),
            *(weight.contiguous(), *results, width, features),
            BLOCK_D=64,
            BLOCK_F=16,
            num_warps=4,
        )
    return tuple(out)


def _normalised(video, ids_keep, stats, dtype, numbers) -> torch.Tensor:
    """Tokens [B * K, F] before the affine part of LayerNorm; `stats` are their mean and rstd."""
    patch, shifts, scale, offset = numbers
    if stats is None:
        return patch_shift(video, ids_keep, None, None, *numbers, 0.0, dtype)[0].flatten(0, 1)
    batch, kept = stats[0].shape
    features = patch[0] * patch[1] ** 2 * (len(shifts) // 3) * video.shape[1]
    xhat = video.new_empty(batch * kept, features, dtype=dtype)
    with torch.cuda.device_of(video):
        _shifted_patch_embed_bwd_normalised_kernel[(batch * kept,)](
            *(video, *map(_contiguous, (ids_keep, *stats)), xhat),
            *(kept, *video.shape[2:], *video.stride()),
            **_constants(video, patch, shifts, scale, offset),
            **_tile(video.shape[1], patch, shifts, None, None),
        )
    return xhat


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A matrix product in fp32, of fp32 or half precision."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # torch has no `out_dtype` on the CPU


def _places(grad, ids_keep, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_keep, and where each token lies among the kept ones, [B, N]."""
    batch, kept = grad.shape[:2]
    steps = torch.arange(kept, device=grad.device).expand(batch, kept)
    if ids_keep is None:
        return steps, steps
    places = ids_keep.new_full((batch, tokens), kept)
    return ids_keep, places.scatter_(1, ids_keep, steps)


def _chunks(batch: int, features: int) -> Iterator[slice]:
    """Parts of the batch, of at most `CHUNK` features or one sample."""
    size = max(1, CHUNK // max(features, 1))
    return (slice(first, first + size) for first in range(0, batch, size))


def _tokens(video: torch.Tensor, patch: list[int]) -> int:
    _, _, frames, height, width = video.shape
    return (frames // patch[0]) * (height // patch[1]) * (width // patch[1])
