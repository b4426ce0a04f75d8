"""Reconstruction loss of a masked autoencoder, straight from the bytes of the video.

Implementations: video/masked_patch_loss in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import check_dense, check_float, check_ids, check_optional, check_shapes
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.limits import CUDA_PLANES, at_most
from stmeta.ops._core.register import register
from stmeta.ops.video import _patch_shift_args as video_args
from stmeta.ops.video._input_checks import swap_hint
from stmeta.ops.video.patch_shift import patch_shift_ref

__all__ = ["masked_patch_loss", "masked_patch_loss_ref", "patch_targets"]

EPS = 1e-6
_OP = "masked_patch_loss"


def masked_patch_loss(
    pred: Tensor,
    video: Tensor,
    *,
    tubelet: int,
    patch: int,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    norm_pix: bool = True,
    eps: float = EPS,
    backend: str = "auto",
) -> Tensor:
    """Mean squared error of predicted patches over the masked tokens (He et al. 2021, section 3).

    The target is each token's tubelet [t, p, p, C] of the video (Feichtenhofer et al. 2022), which
    is never written to memory. The video is a constant: it gets no gradient.

    Args:
        pred: [B, Q, F] with `ids`, [B, N, F] with `mask`; F = t*p*p*C in order (dt, dy, dx, c);
            fp32, bf16 or fp16 (fp64 in eager).
        video: [B, C, T, H, W], any strides. uint8 is divided by 255, float is taken as it is.
        tubelet: frames per token, t.
        patch: pixels per token in height and in width, p.
        ids: int64 [B, Q], the tokens that the rows of `pred` predict. This or `mask`.
        mask: bool [B, N], which rows of `pred` count. Rows of the batch may differ in number.
        mean: C numbers; with `std`, the target is (value - mean) / std.
        std: C numbers.
        norm_pix: normalise each target by its own mean and unbiased variance.
        eps: added to that variance.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        A scalar, fp32 (fp64 for an fp64 `pred`): the mean over all counting numbers, 0 if none.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or not one of `ids` and `mask` is given.
        BackendUnavailableError: the named backend cannot run here.
    """
    _check(pred, video, tubelet, patch, ids, mask, mean, std, norm_pix)
    sizes = {"B": pred.shape[0], "Q": pred.shape[1], "C": video.shape[1]}
    dtype = torch.float64 if torch.float64 in (pred.dtype, video.dtype) else pred.dtype
    name = resolve(_OP, pred, backend, sizes, dtype)
    if name == "eager":
        return masked_patch_loss_ref(
            pred,
            video,
            tubelet=tubelet,
            patch=patch,
            ids=ids,
            mask=mask,
            mean=mean,
            std=std,
            norm_pix=norm_pix,
            eps=eps,
        )
    numbers = video_args.scale_offset(video, mean, std)
    rest = (ids, mask, [tubelet, patch], *numbers, norm_pix, eps)
    return run(_OP, name, pred, video.detach(), *rest)[0]


def _check(
    pred: Tensor,
    video: Tensor,
    tubelet: int,
    patch: int,
    ids: Tensor | None,
    mask: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    norm_pix: bool,
) -> None:
    video_args.check(video, tubelet, patch, "none", mean, std, None, op=_OP)
    check_dense(_OP, pred=pred)
    check_optional(_OP, ids=ids, mask=mask)
    check_float(_OP, "pred", pred)
    if (ids is None) == (mask is None):
        got = "neither" if ids is None else "both"
        raise ValueError(f"{_OP}: exactly one of ids and mask must be given, got {got}")
    batch, channels, frames = video.shape[:3]
    count = video_args.token_count(video, tubelet, patch)
    features = tubelet * patch**2 * channels
    rows = count if ids is None else ids.shape[-1]
    letters = "N" if ids is None else "Q"
    if pred.shape != (batch, rows, features):
        raise ValueError(
            f"{_OP}: pred must be [B, {letters}, F] = [{batch}, {rows}, {features}] to match video "
            f"{list(video.shape)} and {'mask' if ids is None else 'ids'}, got {list(pred.shape)}"
            f"{swap_hint(video, pred.shape[-1:] == (tubelet * patch**2 * frames,))}"
        )
    if norm_pix and features < 2:
        raise ValueError(f"{_OP}: norm_pix needs F of at least 2 for a variance, got {features}")
    if ids is not None:
        check_shapes(_OP, pred=(pred, "B Q F"), ids=(ids, "B Q"))
        check_ids(_OP, "ids", ids, count)
    elif mask is not None:
        check_shapes(_OP, pred=(pred, "B N F"), mask=(mask, "B N"))
        if mask.dtype != torch.bool:
            raise ValueError(f"{_OP}: mask must be bool, got {mask.dtype}; use mask.bool()")
    if video.device != pred.device:
        raise ValueError(
            f"{_OP}: video must be on pred's device {pred.device}, got {video.device}; "
            "use .to(pred.device)"
        )


def patch_targets(
    video: Tensor,
    *,
    tubelet: int,
    patch: int,
    ids: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    norm_pix: bool = True,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `masked_patch_loss` compares with, in plain PyTorch, for pictures and for the reference.

    Args:
        video: [B, C, T, H, W], uint8 or float.
        tubelet: t.
        patch: p.
        ids: int64 [B, Q], the tokens; None = all N.
        mean: C numbers or None.
        std: C numbers or None.
        norm_pix: normalise each target.
        eps: added to the variance.

    Returns:
        target [B, Q or N, F]; mean and deviation that were taken out, [B, Q or N, 1], which are 0
        and 1 without `norm_pix`. fp32, or fp64 for an fp64 video.
    """
    pixels = patch_shift_ref(
        video.detach(),
        tubelet=tubelet,
        patch=patch,
        shifts="none",
        mean=mean,
        std=std,
        ids_keep=ids,
        dtype=video.dtype if video.dtype == torch.float64 else torch.float32,
    )
    if not norm_pix or pixels.numel() == 0:  # a variance of no rows would warn
        zero = pixels.new_zeros(*pixels.shape[:2], 1)
        return pixels, zero, zero + 1
    variance, centre = torch.var_mean(pixels, dim=-1, keepdim=True)
    deviation = (variance + eps).sqrt()
    return (pixels - centre) / deviation, centre, deviation


def masked_patch_loss_ref(
    pred: Tensor,
    video: Tensor,
    *,
    tubelet: int,
    patch: int,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    norm_pix: bool = True,
    eps: float = EPS,
) -> Tensor:
    """`masked_patch_loss` in plain PyTorch, as masked autoencoders are commonly written."""
    target, _, _ = patch_targets(
        video,
        tubelet=tubelet,
        patch=patch,
        ids=ids,
        mean=mean,
        std=std,
        norm_pix=norm_pix,
        eps=eps,
    )
    math = torch.float64 if pred.dtype == torch.float64 else torch.float32
    error = (pred.to(math) - target.to(math)).square()
    if mask is None:
        return error.sum() / max(error.numel(), 1)
    rows = error.mean(dim=-1) * mask
    return rows.sum() / mask.sum().clamp_min(1)


_SCHEMA = (
    "(Tensor pred, Tensor video, Tensor? ids, Tensor? mask, int[] patch, float[] scale, "
    "float[] offset, bool norm_pix, float eps) "
    "-> (Tensor loss, Tensor mean, Tensor rstd, Tensor inverse)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor pred, Tensor video, Tensor? ids, Tensor? mask, Tensor mean, Tensor rstd, "
    "Tensor inverse, int[] patch, float[] scale, float[] offset) -> Tensor"
)


def _fake(pred: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sizes = ((), pred.shape[:2], pred.shape[:2], ())
    return tuple(pred.new_empty(size, dtype=torch.float32) for size in sizes)


def _backward_fake(grad: Tensor, pred: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty(pred.shape)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, (_, *kept) = inputs, output
        ctx.options, ctx.norm = (x.patch, x.scale, x.offset), (x.norm_pix, x.eps)
        ctx.save_for_backward(x.pred, x.video, x.ids, x.mask, *kept)
        ctx.mark_non_differentiable(*kept)

    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        pred = ops.masked_patch_loss_backward(grad, *ctx.saved_tensors, *ctx.options)
        return pred, *[None] * 8

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    pred, video, ids, mask, *_ = ctx.saved_tensors
    norm_pix, eps = ctx.norm
    options = video_args.reference_options(video, ctx.options) | {"norm_pix": norm_pix, "eps": eps}
    return lambda x: masked_patch_loss_ref(x, video, ids=ids, mask=mask, **options), (pred,)


_CUDA = (at_most(CUDA_PLANES, "channels", "C"), at_most(2**30 - 1, "rows B * Q", "B", "Q"))


register(
    _OP,
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits={"cuda": _CUDA},
)
register(
    f"{_OP}_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
