"""Shifted patches: bytes of video in, normalised tokens out, nothing in between in memory.

Implementations: csrc/cpu/patch_shift.cpp, csrc/cuda/patch_shift.cu, kernels/triton/patch_shift.py.

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

from stmeta.ops._dispatch import overload, resolve
from stmeta.ops._register import register

Offsets = Sequence[tuple[int, int, int]]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shift_offsets(
    kind: str, tubelet: int, patch: int, temporal: bool = False
) -> tuple[tuple[int, int, int], ...]:
    """Offsets (dt, dy, dx) of a named set of shifts; the first is always (0, 0, 0).

    Args:
        kind: "diagonal": four of half a patch (the code of Lee et al. 2021); "cardinal": four of
            one pixel (vit-pytorch); "none".
        tubelet: frames per token.
        patch: pixels per token, in height and in width.
        temporal: add half a tubelet, at least one frame, to the past and to the future.

    Raises:
        ValueError: there is no such set.
    """
    half = patch // 2
    sets = {
        "none": (),
        "diagonal": ((0, -half, -half), (0, -half, half), (0, half, -half), (0, half, half)),
        "cardinal": ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0)),
    }
    if kind not in sets:
        raise ValueError(
            f"patch_shift: shifts must be one of {tuple(sets)} or a sequence of (dt, dy, dx), "
            f"got {kind!r}"
        )
    frames = max(1, tubelet // 2)
    in_time = ((-frames, 0, 0), (frames, 0, 0)) if temporal else ()
    return ((0, 0, 0), *sets[kind], *in_time)


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
    offsets = _check(video, tubelet, patch, shifts, mean, std, dtype)
    _check_norm(video, tubelet * patch * patch * len(offsets), norm_weight, norm_bias, eps)
    if ids_keep is not None:
        _check_ids(video, ids_keep, tubelet, patch)
    name = resolve("patch_shift", video, backend)
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
    tokens, _, _ = overload("patch_shift", name)(
        video,
        ids_keep,
        None if norm_weight is None else norm_weight.float(),
        None if norm_bias is None else norm_bias.float(),
        [tubelet, patch],
        [number for offset in offsets for number in offset],
        *_scale_offset(video, mean, std),
        eps,
        dtype or _default_dtype(video),
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
    offsets = _offsets(shifts, tubelet, patch)
    math = torch.float64 if video.dtype == torch.float64 else torch.float32
    scale, offset = (
        torch.tensor(numbers, dtype=math, device=video.device)[:, None, None, None]
        for numbers in _scale_offset(video, mean, std)
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
        norm = norm_weight.to(math), norm_bias.to(math)
        tokens = functional.layer_norm(tokens, norm_weight.shape, *norm, eps)
    return tokens.to(dtype or _default_dtype(video))


def _default_dtype(video: Tensor) -> torch.dtype:
    return torch.float32 if video.dtype == torch.uint8 else video.dtype


def _offsets(shifts: str | Offsets, tubelet: int, patch: int) -> Offsets:
    return shift_offsets(shifts, tubelet, patch) if isinstance(shifts, str) else shifts


def _scale_offset(
    video: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Per channel: value = number * scale + offset."""
    channels = video.shape[1]
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    unit = 255.0 if video.dtype == torch.uint8 else 1.0
    scale = [1.0 / (unit * float(s)) for s in std]
    return scale, [-float(m) / float(s) for m, s in zip(mean, std, strict=True)]


def _check(
    video: Tensor,
    tubelet: int,
    patch: int,
    shifts: str | Offsets,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype | None,
) -> Offsets:
    if video.dim() != 5:
        raise ValueError(
            f"patch_shift: video must be [B, C, T, H, W], got {list(video.shape)}; "
            "one clip is video[None]"
        )
    if video.dtype not in (torch.uint8, torch.float64, *_DTYPES):
        raise ValueError(
            f"patch_shift: video must be uint8 or floating point, got {video.dtype}; "
            "use .to(torch.uint8) for bytes"
        )
    channels, frames, height, width = video.shape[1:]
    for name, value in (("tubelet", tubelet), ("patch", patch)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"patch_shift: {name} must be a positive int, got {value!r}")
    if 0 in (channels, frames, height, width) or frames % tubelet or (height % patch or width % patch):
        raise ValueError(
            f"patch_shift: [T, H, W] must be positive multiples of [{tubelet}, {patch}, {patch}], "
            f"got {[frames, height, width]}, C = {channels}; crop or resize the clip"
        )
    offsets = _offsets(shifts, tubelet, patch)
    if (
        not offsets
        or any(len(offset) != 3 for offset in offsets)
        or any(not isinstance(number, int) for offset in offsets for number in offset)
        or tuple(offsets[0]) != (0, 0, 0)
    ):
        raise ValueError(
            "patch_shift: shifts must be triples (dt, dy, dx) of ints, the first (0, 0, 0), "
            f"got {shifts!r}"
        )
    if (mean is None) != (std is None):
        raise ValueError("patch_shift: mean and std go together, got one of them; pass both")
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and len(numbers) != channels:
            raise ValueError(
                f"patch_shift: {name} must have C = {channels} numbers, got {len(numbers)}; "
                "is the video [B, C, T, H, W]?"
            )
    if std is not None and any(float(s) <= 0 for s in std):
        raise ValueError(f"patch_shift: std must be positive, got {list(std)}")
    allowed = (torch.float64,) if video.dtype == torch.float64 else _DTYPES
    if dtype is not None and dtype not in allowed:
        raise ValueError(
            f"patch_shift: dtype must be one of {allowed} for a video of {video.dtype}, got {dtype}"
        )
    return offsets


def _check_norm(
    video: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    if (weight is None) != (bias is None):
        raise ValueError(
            "patch_shift: norm_weight and norm_bias go together, got one of them; pass both"
        )
    features = size * video.shape[1]
    for name, tensor in (("norm_weight", weight), ("norm_bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != (features,) or not tensor.is_floating_point():
            raise ValueError(
                f"patch_shift: {name} must be [F] = [{features}] floating point, "
                f"got {list(tensor.shape)} {tensor.dtype}; F = t*p*p*S*C"
            )
        if tensor.device != video.device:
            raise ValueError(
                f"patch_shift: {name} must be on the video's device {video.device}, "
                f"got {tensor.device}; use .to(video.device)"
            )
    if weight is not None and eps < 0:
        raise ValueError(f"patch_shift: eps must not be negative, got {eps}")


def _check_ids(video: Tensor, ids_keep: Tensor, tubelet: int, patch: int) -> None:
    batch, _, frames, height, width = video.shape
    count = (frames // tubelet) * (height // patch) * (width // patch)
    rule = f"patch_shift: ids_keep must be [B, K] = [{batch}, K] int64 with values below N = {count}"
    if ids_keep.dim() != 2 or ids_keep.shape[0] != batch or ids_keep.dtype != torch.int64:
        raise ValueError(f"{rule}, got {list(ids_keep.shape)} {ids_keep.dtype}")
    if ids_keep.device != video.device:
        raise ValueError(f"{rule} on {video.device}, got {ids_keep.device}")
    # Values are looked at where that is cheap and possible: not on a GPU, not while tracing.
    plain = type(ids_keep) is Tensor and ids_keep.device.type == "cpu"
    if plain and not torch.compiler.is_compiling() and ids_keep.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids_keep))
        if low < 0 or high >= count:
            raise ValueError(f"{rule}, got values from {low} to {high}")
