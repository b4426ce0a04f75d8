"""Videos that fit a call by their shape, and yet are not what it takes: swapped axes, wrong units.

What cannot be right is an error; what seldom is, but may be, is a warning given once a process.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from stmeta.ops._core.args import visible

_USUAL_CHANNELS = (1, 3, 4)
_warned: set[str] = set()


def swap_hint(video: Tensor, fits: bool) -> str:
    """What to try, where the video would fit with axes 1 and 2 swapped; else ""."""
    if not fits:
        return ""
    return "; did you swap axes 1 and 2? video.transpose(1, 2) makes [B, C, T, H, W]"


def size_hint(video: Tensor, tubelet: int, patch: int) -> str:
    """The same for a clip whose [T, H, W] do not fit, and for one with its channels last."""
    _, second, third, height, width = video.shape
    places = height % patch == 0 and width % patch == 0
    if places and third in _USUAL_CHANNELS and second % tubelet == 0:
        return swap_hint(video, True)
    if width in _USUAL_CHANNELS and second % tubelet == third % patch == height % patch == 0:
        return "; are the channels last? video.permute(0, 4, 1, 2, 3) makes [B, C, T, H, W]"
    return "; crop or resize the clip"


def check_axes(op: str, video: Tensor) -> None:
    """Warn of [B, T, C, H, W] where nothing else tells the number of channels."""
    channels, frames = video.shape[1:3]
    if channels not in _USUAL_CHANNELS and frames in _USUAL_CHANNELS and channels > frames:
        _warn(
            f"{op}: axes",
            f"{op}: video must be [B, C, T, H, W], got {list(video.shape)}, which has {channels} "
            f"channels and {frames} frames; if it is [B, T, C, H, W], pass video.transpose(1, 2)",
        )


def check_units(op: str, video: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Whether mean and std are in the units of the video's numbers.

    Bytes are divided by 255 first. Of a float video on the CPU some numbers of one frame are
    looked at, some 5 microseconds.

    Raises:
        ValueError: the video has bytes, and mean and std are not in units of 255 of them.
    """
    of_bytes = max(mean) > 1 and max(std) > 1
    got = f"mean = {[float(m) for m in mean]} and std = {[float(s) for s in std]}"
    if video.dtype == torch.uint8:
        if of_bytes:
            raise ValueError(
                f"{op}: a uint8 video is divided by 255 before mean and std, which must be in "
                f"these units, got {got}; divide them by 255"
            )
        return
    largest = _largest(video)
    if largest > 32 and max(abs(m) for m in mean) <= 1 and max(std) <= 1:
        remedy = "divide the video by 255, or pass uint8"
    elif 0 < largest < 1 and of_bytes:
        remedy = "divide mean and std by 255"
    else:
        return
    _warn(
        f"{op}: units",
        f"{op}: a float video is taken as it is, so mean and std must be in its units, got values "
        f"up to {largest:.3g} with {got}; {remedy}",
    )


def _largest(video: Tensor) -> float:
    """Largest magnitude among some numbers of the first frame; 0 where a look would wait."""
    seen = visible(video)
    if seen is None or seen.dim() != 5:  # within vmap it has more
        return 0.0
    step = max(1, seen.shape[3] // 16)
    return float(seen.detach()[0, :, 0, ::step, ::step].abs().amax())


def _warn(key: str, message: str) -> None:
    if key not in _warned and not torch.compiler.is_compiling():
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=2)
