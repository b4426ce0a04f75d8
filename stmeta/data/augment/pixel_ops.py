"""Operations of RandAugment and colour jitter on clips: uint8 [T, H, W, 3] in and out.

They follow the Python Imaging Library, which the published policies are written for, with two
differences: what an operation measures (mean, extremes, histogram) is of the whole clip, so that
nothing flickers from frame to frame, and blends are rounded rather than cut off.

A clip is an array on the host or a tensor on a device. An operation is defined here once, in
tables, matrices and factors; what touches pixels is in `pixel_host` and `pixel_device`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from stmeta.data.augment import pixel_device, pixel_host

Clip = TypeVar("Clip", np.ndarray, Tensor)

GREY = 128
"""What comes into the picture from outside, where it is turned, sheared or moved."""

_LEVELS = np.arange(256)


def brightness(clip: Clip, factor: float) -> Clip:
    """Blend with black; 1 = unchanged, 0 = black."""
    return _through(clip, _LEVELS * factor)


def contrast(clip: Clip, factor: float) -> Clip:
    """Blend with the clip's mean grey; 1 = unchanged."""
    mean = int(kernels(clip).mean_grey(clip) + 0.5)
    return _through(clip, mean + factor * (_LEVELS - mean))


def saturation(clip: Clip, factor: float) -> Clip:
    """Blend each pixel with its grey; 1 = unchanged, 0 = no colour."""
    return kernels(clip).saturation(clip, factor)


def sharpness(clip: Clip, factor: float) -> Clip:
    """Blend with a smoothed clip (3 × 3, 5 in the centre of 1s); 1 = unchanged, 2 = sharpened.

    The outermost pixels are not smoothed.
    """
    return kernels(clip).sharpness(clip, factor)


def invert(clip: Clip) -> Clip:
    """255 - value."""
    return 255 - clip


def solarize(clip: Clip, threshold: int) -> Clip:
    """Invert values of at least `threshold`."""
    return _through(clip, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(clip: Clip, amount: int) -> Clip:
    """Add to values below 128."""
    return _through(clip, np.where(_LEVELS < 128, _LEVELS + amount, _LEVELS))


def posterize(clip: Clip, bits: int) -> Clip:
    """Keep so many upper bits, 0 ... 8."""
    return clip & (256 - (1 << 8 - bits))


def autocontrast(clip: Clip) -> Clip:
    """Stretch each channel to 0 ... 255."""
    tables = [
        _LEVELS if low == high else (_LEVELS - low) * 255 // (high - low)
        for low, high in kernels(clip).extremes(clip)
    ]
    return _through(clip, np.stack(tables))


def equalize(clip: Clip) -> Clip:
    """Spread each channel's values so that all are about equally frequent."""
    tables = []
    for counts in kernels(clip).histogram(clip):
        used = np.flatnonzero(counts)
        step = int(counts.sum() - counts[used[-1]]) // 255
        flat = len(used) == 1 or step == 0
        tables.append(_LEVELS if flat else (step // 2 + np.cumsum(counts) - counts) // step)
    return _through(clip, np.stack(tables))


def rotate(clip: Clip, degrees: float) -> Clip:
    """Turn counterclockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = clip.shape[1:3]
    x, y = width / 2, height / 2
    return _affine(clip, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def shear_x(clip: Clip, amount: float) -> Clip:
    """Move each row left by `amount` × its distance from the top."""
    return _affine(clip, (1, amount, 0), (0, 1, 0))


def shear_y(clip: Clip, amount: float) -> Clip:
    """Move each column up by `amount` × its distance from the left edge."""
    return _affine(clip, (1, 0, 0), (amount, 1, 0))


def translate_x(clip: Clip, share: float) -> Clip:
    """Move left by a share of the width."""
    return _affine(clip, (1, 0, share * clip.shape[2]), (0, 1, 0))


def translate_y(clip: Clip, share: float) -> Clip:
    """Move up by a share of the height."""
    return _affine(clip, (1, 0, 0), (0, 1, share * clip.shape[1]))


def erase(clip: Clip, box: tuple[int, int, int, int], fill: np.ndarray | None) -> None:
    """Write into a box of every frame, in place.

    Args:
        clip: changed.
        box: top, left, height, width.
        fill: uint8 [height, width, 3]; None = the clip's mean colour.
    """
    if fill is None:
        fill = np.rint(kernels(clip).mean_colour(clip)).astype(np.uint8)
    top, left, height, width = box
    kernels(clip).write(clip[:, top : top + height, left : left + width], fill)


def kernels(clip: np.ndarray | Tensor) -> Any:
    """The module for this kind of clip."""
    return pixel_host if isinstance(clip, np.ndarray) else pixel_device


def _affine(clip: Clip, to_x: tuple[float, float, float], to_y: tuple[float, float, float]) -> Clip:
    """Fetch each pixel (x, y) from (to_x · (x, y, 1), to_y · (x, y, 1)), bilinear.

    Centres of pixels lie at 0.5, 1.5, ...; what lies outside is grey.
    """
    _, height, width, _ = clip.shape
    # float64: a shift by whole pixels must stay one.
    y, x = np.mgrid[:height, :width] + 0.5
    from_x = to_x[0] * x + to_x[1] * y + to_x[2]
    from_y = to_y[0] * x + to_y[1] * y + to_y[2]
    places = np.stack([2 * from_x / width - 1, 2 * from_y / height - 1], -1).astype(np.float32)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return kernels(clip).fetch(clip, places, inside, GREY)


def _through(clip: Clip, table: np.ndarray) -> Clip:
    """Replace each value; table [256], or [3, 256] by channel, is rounded and clipped to bytes."""
    return kernels(clip).through(clip, np.rint(table).clip(0, 255).astype(np.uint8))
