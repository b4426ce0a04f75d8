"""Arguments of `patch_shift`: what they mean, and the rules they must keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import bounds, check_dense, check_optional
from stmeta.ops._core.limits import CUDA_PLANES, at_most
from stmeta.ops.video._input_checks import check_units, size_hint, swap_hint

Offsets = Sequence[tuple[int, int, int]]
CUDA_LIMITS = (
    at_most(CUDA_PLANES, "shifts", "S"),
    at_most(CUDA_PLANES, "channels", "C"),
    at_most(2**30 - 1, "tokens B * K", "B", "K"),
)
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


def default_dtype(video: Tensor) -> torch.dtype:
    return torch.float32 if video.dtype == torch.uint8 else video.dtype


def scale_offset(
    video: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Per channel: value = number * scale + offset."""
    channels = video.shape[1]
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    unit = 255.0 if video.dtype == torch.uint8 else 1.0
    scale = [1.0 / (unit * float(s)) for s in std]
    return scale, [-float(m) / float(s) for m, s in zip(mean, std, strict=True)]


def check(
    video: Tensor,
    tubelet: int,
    patch: int,
    shifts: str | Offsets,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype | None,
    op: str = "patch_shift",
) -> Offsets:
    check_dense(op, video=video)
    if video.dim() != 5:
        raise ValueError(
            f"{op}: video must be [B, C, T, H, W], got {list(video.shape)}; one clip is video[None]"
        )
    if video.dtype not in (torch.uint8, torch.float64, *_DTYPES):
        raise ValueError(
            f"{op}: video must be uint8 or floating point, got {video.dtype}; "
            "use .to(torch.uint8) for bytes"
        )
    channels, frames, height, width = video.shape[1:]
    for name, value in (("tubelet", tubelet), ("patch", patch)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{op}: {name} must be a positive int, got {value!r}")
    if (
        0 in (channels, frames, height, width)
        or frames % tubelet
        or (height % patch or width % patch)
    ):
        raise ValueError(
            f"{op}: [T, H, W] must be positive multiples of [{tubelet}, {patch}, {patch}], "
            f"got {[frames, height, width]}, C = {channels}{size_hint(video, tubelet, patch)}"
        )
    offsets = shift_offsets(shifts, tubelet, patch) if isinstance(shifts, str) else shifts
    if (
        not _has_items(offsets)
        or not offsets
        or any(len(offset) != 3 for offset in offsets)
        or any(not isinstance(number, int) for offset in offsets for number in offset)
        or tuple(offsets[0]) != (0, 0, 0)
    ):
        raise ValueError(
            f"{op}: shifts must be triples (dt, dy, dx) of ints, the first (0, 0, 0), "
            f"got {shifts!r}"
        )
    if (mean is None) != (std is None):
        raise ValueError(f"{op}: mean and std go together, got one of them; pass both")
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers is None:
            continue
        if not _has_items(numbers):
            raise ValueError(
                f"{op}: {name} must be a sequence of C = {channels} numbers, got {numbers!r}; "
                f"repeat one for all channels: [{numbers!r}] * {channels}"
            )
        if len(numbers) != channels:
            raise ValueError(
                f"{op}: {name} must have C = {channels} numbers, got {len(numbers)} for video "
                f"{list(video.shape)}{swap_hint(video, len(numbers) == frames)}"
            )
    if std is not None and any(float(s) <= 0 for s in std):
        raise ValueError(f"{op}: std must be positive, got {list(std)}")
    if mean is not None and std is not None:
        check_units(op, video, mean, std)
    allowed = (torch.float64,) if video.dtype == torch.float64 else _DTYPES
    if dtype is not None and dtype not in allowed:
        raise ValueError(
            f"{op}: dtype must be one of {allowed} for a video of {video.dtype}, got {dtype}"
        )
    return offsets


def _has_items(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def check_norm(
    video: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    op: str = "patch_shift",
) -> None:
    check_optional(op, norm_weight=weight, norm_bias=bias)
    if (weight is None) != (bias is None):
        raise ValueError(f"{op}: norm_weight and norm_bias go together, got one of them; pass both")
    features = size * video.shape[1]
    for name, tensor in (("norm_weight", weight), ("norm_bias", bias)):
        if tensor is None:
            continue
        hint = swap_hint(video, tensor.shape == (size * video.shape[2],))
        if tensor.shape != (features,) or not tensor.is_floating_point():
            raise ValueError(
                f"{op}: {name} must be [F] = [{features}] floating point, "
                f"got {list(tensor.shape)} {tensor.dtype}; F = t*p*p*S*C{hint}"
            )
        if tensor.device != video.device:
            raise ValueError(
                f"{op}: {name} must be on the video's device {video.device}, "
                f"got {tensor.device}; use .to(video.device)"
            )
    if weight is not None and eps < 0:
        raise ValueError(f"{op}: eps must not be negative, got {eps}")


def token_count(video: Tensor, tubelet: int, patch: int) -> int:
    """N: tokens of a clip."""
    _, _, frames, height, width = video.shape
    return (frames // tubelet) * (height // patch) * (width // patch)


def kernel_sizes(
    video: Tensor, tubelet: int, patch: int, offsets: Offsets, ids_keep: Tensor | None
) -> dict[str, int]:
    """What limits of the kernels ask for."""
    kept = token_count(video, tubelet, patch) if ids_keep is None else ids_keep.shape[1]
    return {"B": video.shape[0], "C": video.shape[1], "S": len(offsets), "K": kept}


def check_ids(
    video: Tensor, ids_keep: Tensor, tubelet: int, patch: int, op: str = "patch_shift"
) -> None:
    check_dense(op, ids_keep=ids_keep)
    batch, count = video.shape[0], token_count(video, tubelet, patch)
    rule = f"{op}: ids_keep must be [B, K] = [{batch}, K] int64 with values below N = {count}"
    if ids_keep.dim() != 2 or ids_keep.shape[0] != batch or ids_keep.dtype != torch.int64:
        raise ValueError(f"{rule}, got {list(ids_keep.shape)} {ids_keep.dtype}")
    if ids_keep.device != video.device:
        raise ValueError(f"{rule} on {video.device}, got {ids_keep.device}")
    low, high = bounds(ids_keep)
    if low < 0 or high >= count:
        raise ValueError(f"{rule}, got values from {low} to {high}")


def reference_options(video: Tensor, numbers: Sequence[Any]) -> dict[str, Any]:
    """Options of a reference for the patch, scale and offset that a kernel takes instead."""
    patch, scale, offset = numbers
    unit = 255.0 if video.dtype == torch.uint8 else 1.0
    std = [1 / (unit * s) for s in scale]
    mean = [-o * s for o, s in zip(offset, std, strict=True)]
    return {"tubelet": patch[0], "patch": patch[1], "mean": mean, "std": std}


def as_triples(shifts: Sequence[int]) -> list[Any]:
    """Offsets (dt, dy, dx) that a kernel takes as one list."""
    return [tuple(shifts[k : k + 3]) for k in range(0, len(shifts), 3)]
