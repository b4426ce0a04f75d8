"""Shifted patches: bytes of video in, normalised tokens out, nothing in between in memory.

Implementations: video/patch_shift in csrc/cpu, csrc/cuda and kernels/triton.

Letters: B batch, C channels, T frames, H W pixels, (t, p, p) tubelet, S shifts, N tokens of a clip,
K kept tokens, F = t*p*p*S*C features of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from stmeta.ops._core.args import needs_gradient, repeats
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import zeros
from stmeta.ops._core.limits import DIFFERENT_IDS, joined
from stmeta.ops._core.register import register
from stmeta.ops._core.schema import arguments_of
from stmeta.ops._core.torch_private import transform
from stmeta.ops.video._input_checks import check_axes
from stmeta.ops.video._patch_shift_args import (
    CUDA_LIMITS,
    Offsets,
    as_triples,
    check,
    check_ids,
    check_norm,
    default_dtype,
    kernel_sizes,
    reference_options,
    scale_offset,
    shift_offsets,
    token_count,
)

__all__ = ["patch_shift", "patch_shift_ref", "shift_offsets"]


def patch_shift(
    video: Tensor,
    *,
    tubelet: int,
    patch: int,
    shifts: str | Offsets = "diagonal",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    ids_keep: Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Cut a video into tokens of shifted patches (Lee et al. 2021, eq. 3-4), and LayerNorm them.

    A token is one tubelet [t, p, p] of the video and of its S shifted copies, side by side; what a
    shift moves in from outside the clip is zero, after normalisation. Everything is one pass in
    fp32; the backward recomputes tokens from the video instead of keeping them.

    Args:
        video: [B, C, T, H, W], any strides. uint8 is divided by 255, float is taken as it is.
            t divides T; p divides H and W.
        tubelet: frames t per token.
        patch: pixels p per token, in height and in width.
        shifts: a name for `shift_offsets`, or offsets (dt, dy, dx), the first of them (0, 0, 0):
            shift s reads video[b, c, t + dt, y + dy, x + dx].
        mean: C numbers, subtracted from the values; with `std`.
        std: C numbers, which divide the result.
        norm_weight: [F], turns LayerNorm over a token's features on; with `norm_bias`.
        norm_bias: [F].
        eps: added to the variance.
        ids_keep: int64 [B, K], values in [0, N), no two alike in a row: compute only these tokens,
            in this order.
        dtype: of the result; fp32, bf16 or fp16. Default: fp32 for uint8, else the video's.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        Tokens [B, N or K, F] in order (t h w), features in order (dt, dy, dx, s, c): c fastest.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or `ids_keep` is out of range (on the CPU).
        BackendUnavailableError: the named backend cannot run here.
    """
    offsets = check(video, tubelet, patch, shifts, mean, std, dtype)
    if mean is None and norm_weight is None:
        check_axes("patch_shift", video)
    check_norm(video, tubelet * patch * patch * len(offsets), norm_weight, norm_bias, eps)
    if ids_keep is not None:
        check_ids(video, ids_keep, tubelet, patch)
    sizes = kernel_sizes(video, tubelet, patch, offsets, ids_keep)
    if ids_keep is not None and needs_gradient(video):
        sizes["twice"] = repeats(ids_keep, token_count(video, tubelet, patch))
    name = resolve("patch_shift", video, backend, sizes)
    if name == "eager":
        return patch_shift_ref(
            video,
            tubelet=tubelet,
            patch=patch,
            shifts=offsets,
            mean=mean,
            std=std,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            eps=eps,
            ids_keep=ids_keep,
            dtype=dtype,
        )
    tokens, _, _ = run(
        "patch_shift",
        name,
        video,
        ids_keep,
        None if norm_weight is None else norm_weight.float(),
        None if norm_bias is None else norm_bias.float(),
        [tubelet, patch],
        [number for offset in offsets for number in offset],
        *scale_offset(video, mean, std),
        eps,
        dtype or default_dtype(video),
    )
    return tokens


def patch_shift_ref(
    video: Tensor,
    *,
    tubelet: int,
    patch: int,
    shifts: str | Offsets = "diagonal",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    ids_keep: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`patch_shift` in plain PyTorch, the fastest that we found; float64 for a float64 video."""
    offsets = shift_offsets(shifts, tubelet, patch) if isinstance(shifts, str) else shifts
    math = torch.float64 if video.dtype == torch.float64 else torch.float32
    scale, offset = (
        torch.tensor(numbers, dtype=math, device=video.device)[:, None, None, None]
        for numbers in scale_offset(video, mean, std)
    )
    x = torch.addcmul(offset, video.to(math), scale)
    far = [max(abs(shift[axis]) for shift in offsets) for axis in range(3)]
    if any(far):
        x = functional.pad(x, (far[2], far[2], far[1], far[1], far[0], far[0]))
    # All views: a split or permuted axis copies nothing, so `stack` is the one pass over memory.
    shifted = [
        rearrange(
            x[
                :,
                :,
                far[0] + dt : far[0] + dt + video.shape[2],
                far[1] + dy : far[1] + dy + video.shape[3],
                far[2] + dx : far[2] + dx + video.shape[4],
            ],
            "b c (t dt) (h dy) (w dx) -> b t h w dt dy dx c",
            dt=tubelet,
            dy=patch,
            dx=patch,
        )
        for dt, dy, dx in offsets
    ]
    if ids_keep is None:
        tokens = torch.stack(shifted, dim=-2).flatten(4).flatten(1, 3)
    else:
        rows, columns = video.shape[3] // patch, video.shape[4] // patch
        clip = torch.arange(video.shape[0], device=video.device)[:, None]
        time = ids_keep // (rows * columns)
        place = (clip, time, ids_keep // columns % rows, ids_keep % columns)
        tokens = torch.stack([view[place] for view in shifted], dim=-2).flatten(2)
    if norm_weight is not None and norm_bias is not None:
        tokens = _layer_norm(tokens, norm_weight.to(math), norm_bias.to(math), eps)
    return tokens.to(dtype or default_dtype(video))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if not transform():
        return functional.layer_norm(x, weight.shape, weight, bias, eps)
    # Second derivatives of torch's own are wrong under torch.func (found on 2.13).
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return (x - mean) * (variance + eps).rsqrt() * weight + bias


_SCHEMA = (
    "(Tensor video, Tensor? ids_keep, Tensor? weight, Tensor? bias, int[] patch, int[] shifts, "
    "float[] scale, float[] offset, float eps, ScalarType dtype) "
    "-> (Tensor tokens, Tensor mean, Tensor rstd)"
)
_Arguments = arguments_of(_SCHEMA)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor video, Tensor? ids_keep, Tensor? weight, Tensor mean, Tensor rstd, "
    "int[] patch, int[] shifts, float[] scale, float[] offset, bool[] needs) "
    "-> (Tensor grad_video, Tensor grad_weight, Tensor grad_bias)"
)


def _fake(
    video: Tensor,
    ids_keep: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    patch: Sequence[int],
    shifts: Sequence[int],
    scale: Sequence[float],
    offset: Sequence[float],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    (t, p), (batch, channels, frames, height, width) = patch, video.shape
    kept = (frames // t) * (height // p) * (width // p) if ids_keep is None else ids_keep.shape[1]
    tokens = video.new_empty(batch, kept, t * p * p * (len(shifts) // 3) * channels, dtype=dtype)
    stats = (0,) if weight is None else (batch, kept)
    mean = video.new_empty(stats, dtype=torch.float32)
    return tokens, mean, torch.empty_like(mean)


def _backward_fake(grad: Tensor, video: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    needs = rest[-1]
    sizes = [grad.shape[2] if need else 0 for need in needs[1:]]
    return (
        video.new_empty(video.shape if needs[0] else (0,)),
        video.new_empty(sizes[0], dtype=torch.float32),
        video.new_empty(sizes[1], dtype=torch.float32),
    )


def _autograd(ops: Any) -> tuple[Any, Any]:
    """`ops` is the namespace of the forward; its backward op serves the same devices."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x = inputs
        ctx.numbers, ctx.result = (x.patch, x.shifts, x.scale, x.offset), (x.eps, x.dtype)
        ctx.save_for_backward(x.video, x.ids_keep, x.weight, output.mean, output.rstd)
        ctx.mark_non_differentiable(output.mean, output.rstd)

    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        need = _Arguments(*ctx.needs_input_grad)
        needs = [need.video, need.weight, need.bias]
        grads = ops.patch_shift_backward(grad, *ctx.saved_tensors, *ctx.numbers, needs)
        video, weight, bias = (g if need else None for g, need in zip(grads, needs, strict=True))
        return video, None, weight, bias, *[None] * 6

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    video, ids_keep, weight, _, _ = ctx.saved_tensors
    patch, shifts, scale, offset = ctx.numbers
    options = reference_options(video, (patch, scale, offset))
    options["shifts"] = as_triples(shifts)
    options |= dict(zip(("eps", "dtype"), ctx.result, strict=True))
    bias = None if weight is None else zeros(weight, *weight.shape)

    def shift(video: Tensor, ids: Any, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        norm = {"norm_weight": weight, "norm_bias": bias}
        return patch_shift_ref(video, ids_keep=ids, **norm, **options)

    return shift, (video, ids_keep, weight, bias)


register(
    "patch_shift",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=joined({"cuda": CUDA_LIMITS}, DIFFERENT_IDS),
)
register(
    "patch_shift_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
