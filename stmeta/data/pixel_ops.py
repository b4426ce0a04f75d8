"""Operations of RandAugment and colour jitter on clips: uint8 [T, H, W, 3] in and out.

They follow the Python Imaging Library, which the published policies are written for, with two
differences: what an operation measures (mean, extremes, histogram) is of the whole clip, so that
nothing flickers from frame to frame, and blends are rounded rather than cut off.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

GREY = 128
"""What comes into the picture from outside, where it is turned, sheared or moved."""

_LEVELS = np.arange(256)


def brightness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black; 1 = unchanged, 0 = black."""
    return _through(clip, _byte(_LEVELS * factor))


def contrast(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the clip's mean grey; 1 = unchanged."""
    mean = int(_grey(clip).mean(dtype=np.float64) + 0.5)
    return _through(clip, _byte(mean + factor * (_LEVELS - mean)))


def saturation(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend each pixel with its grey; 1 = unchanged, 0 = no colour."""
    return _blend(_grey(clip)[..., None], clip, factor)


def sharpness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed clip (3 × 3, 5 in the centre of 1s); 1 = unchanged, 2 = sharpened.

    The outermost pixels are not smoothed.
    """
    if min(clip.shape[1:3]) < 3:
        return clip.copy()
    wide = clip.astype(np.uint16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = clip.copy()
    smooth[:, 1:-1, 1:-1] = (box + 4 * wide[:, 1:-1, 1:-1] + 6) // 13
    return _blend(smooth, clip, factor)


def invert(clip: np.ndarray) -> np.ndarray:
    """255 - value."""
    return 255 - clip


def solarize(clip: np.ndarray, threshold: int) -> np.ndarray:
    """Invert values of at least `threshold`."""
    return _through(clip, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(clip: np.ndarray, amount: int) -> np.ndarray:
    """Add to values below 128."""
    return _through(clip, np.where(_LEVELS < 128, np.minimum(_LEVELS + amount, 255), _LEVELS))


def posterize(clip: np.ndarray, bits: int) -> np.ndarray:
    """Keep so many upper bits, 0 ... 8."""
    return clip & np.uint8(256 - (1 << 8 - bits))


def autocontrast(clip: np.ndarray) -> np.ndarray:
    """Stretch each channel to 0 ... 255."""
    out = np.empty_like(clip)
    for channel in range(3):
        values = clip[..., channel]
        low, high = int(values.min()), int(values.max())
        table = _LEVELS if low == high else (_LEVELS - low) * 255 // (high - low)
        out[..., channel] = _through(values, table.clip(0, 255))
    return out


def equalize(clip: np.ndarray) -> np.ndarray:
    """Spread each channel's values so that all are about equally frequent."""
    out = np.empty_like(clip)
    for channel in range(3):
        values = clip[..., channel]
        counts = np.bincount(values.ravel(), minlength=256)
        used = np.flatnonzero(counts)
        step = int(counts.sum() - counts[used[-1]]) // 255
        table = _LEVELS
        if len(used) > 1 and step > 0:
            table = np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)
        out[..., channel] = _through(values, table)
    return out


def rotate(clip: np.ndarray, degrees: float) -> np.ndarray:
    """Turn counterclockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = clip.shape[1:3]
    x, y = width / 2, height / 2
    return _affine(clip, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def shear_x(clip: np.ndarray, amount: float) -> np.ndarray:
    """Move each row left by `amount` × its distance from the top."""
    return _affine(clip, (1, amount, 0), (0, 1, 0))


def shear_y(clip: np.ndarray, amount: float) -> np.ndarray:
    """Move each column up by `amount` × its distance from the left edge."""
    return _affine(clip, (1, 0, 0), (amount, 1, 0))


def translate_x(clip: np.ndarray, share: float) -> np.ndarray:
    """Move left by a share of the width."""
    return _affine(clip, (1, 0, share * clip.shape[2]), (0, 1, 0))


def translate_y(clip: np.ndarray, share: float) -> np.ndarray:
    """Move up by a share of the height."""
    return _affine(clip, (1, 0, 0), (0, 1, share * clip.shape[1]))


def _affine(
    clip: np.ndarray, to_x: tuple[float, float, float], to_y: tuple[float, float, float]
) -> np.ndarray:
    """Fetch each pixel (x, y) from (to_x · (x, y, 1), to_y · (x, y, 1)), bilinear.

    Centres of pixels lie at 0.5, 1.5, ...; what lies outside is grey.
    """
    frames, height, width, _ = clip.shape
    # float64: a shift by whole pixels must stay one.
    y, x = np.mgrid[:height, :width] + 0.5
    from_x = to_x[0] * x + to_x[1] * y + to_x[2]
    from_y = to_y[0] * x + to_y[1] * y + to_y[2]
    grid = np.stack([2 * from_x / width - 1, 2 * from_y / height - 1], -1)
    # Frames as channels: the weights are computed once, and the calling thread works alone.
    planes = clip.transpose(0, 3, 1, 2).reshape(1, frames * 3, height, width)
    moved = F.grid_sample(
        torch.from_numpy(planes.astype(np.float32)),
        torch.from_numpy(grid[None].astype(np.float32)),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    pixels = np.rint(moved.numpy()).astype(np.uint8).reshape(frames, 3, height, width)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(inside[:, :, None], pixels.transpose(0, 2, 3, 1), np.uint8(GREY))


def _grey(clip: np.ndarray) -> np.ndarray:
    """Brightness of each pixel (ITU-R BT.601), uint8 [T, H, W]."""
    red, green, blue = (clip[..., channel].astype(np.uint32) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 32768 >> 16).astype(np.uint8)


def _blend(base: np.ndarray, clip: np.ndarray, factor: float) -> np.ndarray:
    start = base.astype(np.float32)
    return _byte(start + np.float32(factor) * (clip - start))


def _byte(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _through(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look each value up in a table of 256; several times as fast as numpy's indexing."""
    found = values.tobytes().translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(found, np.uint8).reshape(values.shape)
