"""What `pixel_ops` does to the pixels of clips on the host, on the calling thread alone."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F


def through(clip: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look each value up, in uint8 [256], or [3, 256] by channel."""
    if table.ndim == 1:
        return _translate(clip, table)
    out = np.empty_like(clip)
    for channel in range(3):
        out[..., channel] = _translate(clip[..., channel], table[channel])
    return out


def extremes(clip: np.ndarray) -> list[tuple[int, int]]:
    """Least and largest value of each channel."""
    channels = (clip[..., channel] for channel in range(3))
    return [(int(values.min()), int(values.max())) for values in channels]


def histogram(clip: np.ndarray) -> np.ndarray:
    """How often each channel has each value, int64 [3, 256]."""
    return np.stack([np.bincount(clip[..., c].ravel(), minlength=256) for c in range(3)])


def mean_grey(clip: np.ndarray) -> float:
    """Mean brightness."""
    return float(_grey(clip).mean(dtype=np.float64))


def mean_colour(clip: np.ndarray) -> np.ndarray:
    """Mean of each channel, float64 [3]."""
    return clip.mean((0, 1, 2), dtype=np.float64)


def saturation(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend each pixel with its grey."""
    return _blend(_grey(clip)[..., None], clip, factor)


def sharpness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed clip."""
    if min(clip.shape[1:3]) < 3:
        return clip.copy()
    wide = clip.astype(np.uint16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = clip.copy()
    smooth[:, 1:-1, 1:-1] = (box + 4 * wide[:, 1:-1, 1:-1] + 6) // 13
    return _blend(smooth, clip, factor)


def fetch(clip: np.ndarray, places: np.ndarray, inside: np.ndarray, fill: int) -> np.ndarray:
    """Fetch each pixel from a place, bilinear.

    Args:
        clip: uint8 [T, H, W, 3].
        places: float32 [H, W, 2], x and y, both -1 ... 1 from edge to edge.
        inside: bool [H, W]; elsewhere is `fill`.
        fill: value of all channels.
    """
    frames, height, width, _ = clip.shape
    # Frames as channels: the weights are computed once, and the calling thread works alone.
    planes = clip.transpose(0, 3, 1, 2).reshape(1, frames * 3, height, width)
    moved = F.grid_sample(
        torch.from_numpy(planes.astype(np.float32)),
        torch.from_numpy(places[None]),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    pixels = np.rint(moved.numpy()).astype(np.uint8).reshape(frames, 3, height, width)
    return np.where(inside[:, :, None], pixels.transpose(0, 2, 3, 1), np.uint8(fill))


def write(part: np.ndarray, values: np.ndarray) -> None:
    """Write uint8 values into a part of a clip."""
    part[...] = values


def _grey(clip: np.ndarray) -> np.ndarray:
    """Brightness of each pixel (ITU-R BT.601), uint8 [T, H, W]."""
    red, green, blue = (clip[..., channel].astype(np.uint32) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 32768 >> 16).astype(np.uint8)


def _blend(base: np.ndarray, clip: np.ndarray, factor: float) -> np.ndarray:
    start = base.astype(np.float32)
    blend = start + np.float32(factor) * (clip - start)
    return np.rint(blend).clip(0, 255).astype(np.uint8)


def _translate(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Several times as fast as numpy's indexing."""
    found = values.tobytes().translate(table.tobytes())
    return np.frombuffer(found, np.uint8).reshape(values.shape)
