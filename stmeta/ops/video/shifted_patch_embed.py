"""Video to embedded tokens: shifted patches, LayerNorm, Linear and positions in one op.

Implementations: video/shifted_patch_embed in csrc/cpu, csrc/cuda and kernels/triton.

Letters: those of `patch_shift`, and D for the width of an embedded token.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stmeta.ops._core.args import (
    FLOATS,
    check_dense,
    check_optional,
    check_shapes,
    needs_gradient,
)
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import zeros
from stmeta.ops._core.register import register
from stmeta.ops._core.schema import arguments_of
from stmeta.ops.video._input_checks import swap_hint
from stmeta.ops.video._patch_shift_args import (
    CUDA_LIMITS,
    Offsets,
    as_triples,
    check,
    check_ids,
    check_norm,
    kernel_sizes,
    reference_options,
    scale_offset,
    shift_offsets,
)
from stmeta.ops.video.patch_shift import patch_shift, patch_shift_ref

__all__ = ["shifted_patch_embed", "shifted_patch_embed_ref"]

_OP = "shifted_patch_embed"


def shifted_patch_embed(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
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
    pos: Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Shifted patch tokenization (Lee et al. 2021, eq. 3-5), and positions: Linear(LN(patches)).

    The tokens never exist as a whole, and only those in `ids_keep` are made. The backward makes
    them again. It never forms their gradient: with xhat the normalised tokens and G = grad^T xhat,
    the gradients of the Linear and of the LayerNorm follow from G and the sum of grad alone.

    A video that requires a gradient (it seldom does) runs as `patch_shift` and a Linear.

    Args:
        video: [B, C, T, H, W], any strides. uint8 is divided by 255, float is taken as it is.
        weight: [D, F] of the Linear, F = t*p*p*S*C in the order of `patch_shift`.
        bias: [D] or None.
        tubelet: frames per token, t.
        patch: pixels per token in height and in width, p.
        shifts: "diagonal", "cardinal", "none", or triples (dt, dy, dx), the first (0, 0, 0).
        mean: C numbers; with `std`, values become (value - mean) / std.
        std: C numbers.
        norm_weight: [F] of the LayerNorm; None, as is `norm_bias`: no LayerNorm.
        norm_bias: [F].
        eps: added to the variance.
        ids_keep: int64 [B, K], values in [0, N), no two alike in a row: embed only these tokens,
            in this order.
        pos: [N, D] positional embedding, or None; token n gets row n.
        dtype: of the product and of the result; fp32, bf16 or fp16. Default: the weight's,
            or fp32 where that has integers.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        [B, N or K, D] in `dtype`.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or `ids_keep` is out of range (on the CPU).
        BackendUnavailableError: the named backend cannot run here.
    """
    check_dense(_OP, weight=weight)
    check_optional(_OP, bias=bias, pos=pos)
    dtype = dtype or _default_dtype(weight)
    if dtype not in FLOATS:
        raise ValueError(
            f"{_OP}: dtype must be fp32, bf16, fp16 or fp64, got {dtype}; it is the weight's where "
            "none is given"
        )
    offsets = _check(
        video, weight, bias, tubelet, patch, shifts, mean, std, norm_weight, norm_bias, eps, pos
    )
    if ids_keep is not None:
        check_ids(video, ids_keep, tubelet, patch, op=_OP)
    sizes = kernel_sizes(video, tubelet, patch, offsets, ids_keep)
    double = torch.float64 in (dtype, video.dtype)
    name = resolve(_OP, video, backend, sizes, torch.float64 if double else dtype)
    rest: dict[str, Any] = {
        "tubelet": tubelet,
        "patch": patch,
        "shifts": offsets,
        "mean": mean,
        "std": std,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "eps": eps,
        "ids_keep": ids_keep,
        "dtype": dtype,
    }
    if name == "eager":
        return shifted_patch_embed_ref(video, weight, bias, pos=pos, **rest)
    if needs_gradient(video):
        return _linear(patch_shift(video, backend=backend, **rest), weight, bias, pos, ids_keep)
    out, _, _ = run(
        _OP,
        name,
        video,
        ids_keep,
        *(None if x is None else x.float() for x in (norm_weight, norm_bias)),
        weight.to(dtype),
        *(None if x is None else x.float() for x in (bias, pos)),
        [tubelet, patch],
        [number for offset in offsets for number in offset],
        *scale_offset(video, mean, std),
        eps,
        dtype,
    )
    return out


def _default_dtype(weight: Tensor) -> torch.dtype:
    whole = not (weight.is_floating_point() or weight.is_complex())
    return torch.float32 if whole else weight.dtype


def _check(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tubelet: int,
    patch: int,
    shifts: str | Offsets,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    pos: Tensor | None,
) -> Offsets:
    offsets = check(video, tubelet, patch, shifts, mean, std, None, op=_OP)
    size = tubelet * patch * patch * len(offsets)
    check_norm(video, size, norm_weight, norm_bias, eps, op=_OP)
    features = size * video.shape[1]
    hint = swap_hint(video, weight.shape[1:] == (size * video.shape[2],))
    if weight.dim() != 2 or weight.shape[1] != features:
        raise ValueError(
            f"{_OP}: weight must be [D, F] = [D, {features}] for video {list(video.shape)}, "
            f"got {list(weight.shape)}; F = t*p*p*S*C{hint}"
        )
    arguments = {"weight": (weight, "D F")}
    if bias is not None:
        arguments["bias"] = (bias, "D")
    if pos is not None:
        arguments["pos"] = (pos, "N D")
        count = video.shape[2] // tubelet * (video.shape[3] // patch) * (video.shape[4] // patch)
        if pos.shape[:1] != (count,):
            raise ValueError(
                f"{_OP}: pos must be [N, D] = [{count}, {weight.shape[0]}] for video "
                f"{list(video.shape)}, got {list(pos.shape)}"
            )
    check_shapes(_OP, **arguments)
    if weight.device != video.device:
        raise ValueError(
            f"{_OP}: weight must be on the video's device {video.device}, got {weight.device}; "
            "use .to(video.device)"
        )
    return offsets


def shifted_patch_embed_ref(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pos: Tensor | None = None,
    ids_keep: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **patches: Any,
) -> Tensor:
    """`shifted_patch_embed` in plain PyTorch: `patch_shift_ref`, then a Linear and positions."""
    dtype = dtype or _default_dtype(weight)
    shifts = patches["shifts"]
    if isinstance(shifts, str):
        patches["shifts"] = shift_offsets(shifts, patches["tubelet"], patches["patch"])
    tokens = patch_shift_ref(video, ids_keep=ids_keep, dtype=dtype, **patches)
    return _linear(tokens, weight, bias, pos, ids_keep)


def _linear(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos: Tensor | None,
    ids_keep: Tensor | None,
) -> Tensor:
    dtype = tokens.dtype
    out = functional.linear(tokens, weight.to(dtype), None if bias is None else bias.to(dtype))
    if pos is None:
        return out
    table = pos if ids_keep is None else functional.embedding(ids_keep, pos)
    return (out + table).to(dtype)


_SCHEMA = (
    "(Tensor video, Tensor? ids_keep, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, "
    "Tensor? bias, Tensor? pos, int[] patch, int[] shifts, float[] scale, float[] offset, "
    "float eps, ScalarType dtype) -> (Tensor out, Tensor mean, Tensor rstd)"
)
_Arguments = arguments_of(_SCHEMA)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor video, Tensor? ids_keep, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor weight, Tensor mean, Tensor rstd, int[] patch, int[] shifts, float[] scale, "
    "float[] offset, SymInt tokens, bool[] needs) -> (Tensor grad_norm_weight, "
    "Tensor grad_norm_bias, Tensor grad_weight, Tensor grad_bias, Tensor grad_pos)"
)


def _count(video: Tensor, patch: Sequence[int]) -> int:
    t, p = patch
    return video.shape[2] // t * (video.shape[3] // p) * (video.shape[4] // p)


def _fake(
    video: Tensor,
    ids_keep: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pos: Tensor | None,
    patch: Sequence[int],
    shifts: Sequence[int],
    scale: Sequence[float],
    offset: Sequence[float],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _count(video, patch) if ids_keep is None else ids_keep.shape[1]
    out = video.new_empty(video.shape[0], kept, weight.shape[0], dtype=dtype)
    stats = (0,) if norm_weight is None else (video.shape[0], kept)
    mean = video.new_empty(stats, dtype=torch.float32)
    return out, mean, torch.empty_like(mean)


def _backward_fake(
    grad: Tensor,
    video: Tensor,
    ids_keep: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    dim, features = weight.shape
    tokens, needs = rest[-2:]
    sizes = ((features,), (features,), (dim, features), (dim,), (tokens, dim))
    return tuple(
        grad.new_empty(size if need else (0,), dtype=torch.float32)
        for size, need in zip(sizes, needs, strict=True)
    )


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x = inputs
        ctx.numbers = [x.patch, x.shifts, x.scale, x.offset, _count(x.video, x.patch)]
        ctx.result, ctx.dtype = (x.eps, x.dtype), x.weight.dtype
        saved = (x.video, x.ids_keep, x.norm_weight, x.norm_bias, x.weight)
        ctx.save_for_backward(*saved, output.mean, output.rstd)
        ctx.mark_non_differentiable(output.mean, output.rstd)

    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        need = _Arguments(*ctx.needs_input_grad)
        needs = [need.norm_weight, need.norm_bias, need.weight, need.bias, need.pos]
        grads = ops.shifted_patch_embed_backward(grad, *ctx.saved_tensors, *ctx.numbers, needs)
        wanted = (g if need else None for g, need in zip(grads, needs, strict=True))
        norm_weight, norm_bias, weight, bias, pos = wanted
        weight = None if weight is None else weight.to(ctx.dtype)
        return None, None, norm_weight, norm_bias, weight, bias, pos, *[None] * 6

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    video, ids_keep, norm_weight, norm_bias, weight, _, _ = ctx.saved_tensors
    patch, shifts, scale, offset, tokens = ctx.numbers
    options = reference_options(video, (patch, scale, offset))
    options["shifts"] = as_triples(shifts)
    options |= dict(zip(("eps", "dtype"), ctx.result, strict=True))
    need, dim = _Arguments(*ctx.needs_input_grad), weight.shape[0]
    (grad, *_) = grads
    bias = zeros(grad, dim, dtype=torch.float32) if need.bias else None
    pos = zeros(grad, tokens, dim, dtype=torch.float32) if need.pos else None

    def embed(video: Tensor, ids: Any, *rest: Tensor | None) -> Tensor:
        norm_weight, norm_bias, weight, bias, pos = rest
        assert weight is not None
        norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "ids_keep": ids, "pos": pos}
        return shifted_patch_embed_ref(video, weight, bias, **norm, **options)

    return embed, (video, ids_keep, norm_weight, norm_bias, weight, bias, pos)


def _flops(x: Any, out: Any) -> int:
    tokens, *_ = out
    return 2 * prod(tokens) * x.weight[1]


def _backward_flops(x: Any, out: Any) -> int:
    norm_weight, norm_bias, weight, _, _ = x.needs
    products = weight + (norm_weight or norm_bias)  # of the weight; of the tokens, for the norm
    return 2 * products * prod(x.grad) * x.weight[1]


register(
    _OP,
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits={"cuda": CUDA_LIMITS},
    flops=_flops,
)
register(
    f"{_OP}_backward", _BACKWARD_SCHEMA, _backward_fake, module=__name__, flops=_backward_flops
)
