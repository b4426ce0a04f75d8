"""Crop, flip and resize: the window of a clip is a pure function of its seed.

All frames of a clip share one window. `crop_resize` is the path on the CPU; `decode.dali` has the
same steps as a DALI graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stmeta._errors import DataError
from stmeta._util.hashing import uniform
from stmeta.data.video.display import Display


class Window(NamedTuple):
    """Part of a frame, in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def random_window(
    seed: int,
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
) -> Window:
    """Draw a random resized crop (Szegedy et al. 2015, section 6).

    Args:
        seed: gives the window.
        height: of the frame.
        width: of the frame.
        scale: smallest and largest share of the frame's area.
        ratio: smallest and largest width / height; uniform in the logarithm.
        hflip: chance of a flip.
    """
    flip = uniform(seed, 1) < hflip
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(2, 42, 4):
        area = height * width * (scale[0] + uniform(seed, attempt) * (scale[1] - scale[0]))
        aspect = math.exp(low + uniform(seed, attempt + 1) * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(seed, attempt + 2) * (height - h + 1))
            left = int(uniform(seed, attempt + 3) * (width - w + 1))
            return Window(top, left, h, w, flip)
    # No shape fits, as in a very wide frame: the largest centre window with an allowed ratio.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(w / ratio[0])))
    return Window((height - h) // 2, (width - w) // 2, h, w, flip)


def plain_window(seed: int, height: int, width: int, *, size: int, hflip: float) -> Window:
    """Draw a size × size window that is not resized.

    Raises:
        DataError: the frame is smaller.
    """
    _check_plain(height, width, size)
    top = int(uniform(seed, 2) * (height - size + 1))
    left = int(uniform(seed, 3) * (width - size + 1))
    return Window(top, left, size, size, uniform(seed, 1) < hflip)


def centre_window(height: int, width: int, *, size: int | None = None) -> Window:
    """The centre square: the largest that fits, or size × size.

    Raises:
        DataError: the frame is smaller than `size`.
    """
    if size is not None:
        _check_plain(height, width, size)
    side = size or min(height, width)
    return Window((height - side) // 2, (width - side) // 2, side, side, False)


def shown_window(
    window_fn: Callable[[int, int, int], Window],
    seed: int,
    height: int,
    width: int,
    display: Display,
) -> Window:
    """Draw a window as if pixels were square; resizing it then makes them so.

    Args:
        window_fn: gives a window from (seed, height, width).
        seed: for `window_fn`.
        height: of the upright frame, in its own pixels.
        width: likewise.
        display: gives the shape of these pixels.
    """
    if display.aspect == 1:
        return window_fn(seed, height, width)
    tall, wide = (max(1, round(size)) for size in display.square(height, width))
    top, left, rows, columns, flip = window_fn(seed, tall, wide)
    top, rows = _scaled(top, rows, tall, height)
    left, columns = _scaled(left, columns, wide, width)
    return Window(top, left, rows, columns, flip)


def _scaled(begin: int, size: int, old: int, new: int) -> tuple[int, int]:
    """A stretch of `old` pixels as one of `new`: its first one and how many."""
    first = min(new - 1, round(begin * new / old))
    return first, max(1, min(new, round((begin + size) * new / old)) - first)


def crop_resize(video: np.ndarray, window: Window, out: np.ndarray) -> None:
    """Cut the window out of each frame and resize it, bilinear with antialiasing.

    A window of the right size is copied. Runs on the calling thread alone.

    Args:
        video: uint8 [T, H, W, 3].
        window: lies within H × W.
        out: uint8 [T, h, w, 3], written.
    """
    top, left, height, width, flip = window
    clip = video[:, top : top + height, left : left + width]
    if (height, width) != out.shape[1:3]:
        import torch  # not above: decoder processes do without
        from torch.nn.functional import interpolate

        # torch resizes uint8 with channels innermost by SIMD on the calling thread. It would copy a
        # view first, with all its threads, which costs more here than the resize.
        clip = np.ascontiguousarray(clip)
        pixels = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [T, 3, h, w], channels_last
        pixels = interpolate(pixels, out.shape[1:3], mode="bilinear", antialias=True)
        clip = pixels.permute(0, 2, 3, 1).numpy()
    if flip:
        # Channel by channel: three long strided copies are 5 times as fast as one of 3-byte pixels.
        for channel in range(3):
            out[..., channel] = clip[:, :, ::-1, channel]
    else:
        np.copyto(out, clip)


def _check_plain(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise DataError(
            f"a {size}×{size} window does not fit into {width}×{height}; crop='resized' resizes"
        )
