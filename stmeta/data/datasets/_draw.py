"""Draws the clips of the `motions` data set: shapes as signed distance functions, soft edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from stmeta.data.datasets._paths import Motion, Tracks

_MARGIN = 8  # pixels around the picture that the moving camera may show

# Distance to the edge of a shape of about unit radius, negative inside; x, y are float32 arrays.
_Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


_SHAPES: tuple[_Distance, ...] = (
    lambda x, y: np.hypot(x, y) - 0.95,
    lambda x, y: _box(x, y, 0.82, 0.82),
    lambda x, y: np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.55,
    lambda x, y: np.minimum(_box(x, y, 1.0, 0.36), _box(x, y, 0.36, 1.0)),
    lambda x, y: _box(x, y, 1.05, 0.5),
    lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.3,
    lambda x, y: np.maximum(np.hypot(x, y) - 1.0, -y - 0.1),
)
# Which of a shape's two colours a point has; none is symmetric, so that turning shows on a disc.
_PATTERNS: tuple[_Distance, ...] = (
    lambda x, y: x,
    lambda x, y: 0.3 * np.sin(6 * x + 1),
    lambda x, y: x * y,
    lambda x, y: np.hypot(x - 0.35, y) - 0.4,
)


class _Style(NamedTuple):
    shape: _Distance
    pattern: _Distance
    colors: np.ndarray  # [2, 3]
    radius: float


def draw_clip(
    motion: Motion,
    rng: Generator,
    *,
    frames: int,
    size: int,
    frame_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw one clip.

    Args:
        motion: tracks of the moving shapes.
        rng: decides everything else: shapes, colours, background, still shapes, camera.
        frames: T.
        size: H = W, pixels.
        frame_indices: positions of the frames to draw; None = all.

    Returns:
        uint8 [T or len(shown), H, W, 3].
    """
    t = np.arange(frames, dtype=np.float64)
    tracks = motion(rng, t)
    scene = _background(rng, size + 2 * _MARGIN)
    for _ in range(_still_shapes(rng, tracks)):
        x, y = rng.uniform(0.12, 0.88, 2) * size + _MARGIN
        _paint(scene, _style(rng), x, y, 1.0, rng.uniform(0, 2 * np.pi), 1.0)
    styles = [_style(rng) for _ in tracks]
    turns = rng.uniform(0, 2 * np.pi, len(tracks))
    paths = [np.stack([np.broadcast_to(value, frames) for value in track]) for track in tracks]
    camera = _camera(rng, t)
    noise = rng.uniform(0, 3)
    frame_indices = range(frames) if frame_indices is None else frame_indices
    clip = np.empty((len(frame_indices), size, size, 3), np.uint8)
    for row, i in enumerate(frame_indices):
        picture = _shifted(scene, *camera[i])
        for style, path, turn in zip(styles, paths, turns, strict=True):
            x, y, scale, angle, opacity = path[:, i]
            middle = size / 2 + _MARGIN
            _paint(picture, style, x + middle, y + middle, scale, angle + turn, opacity)
        picture = picture[_MARGIN : _MARGIN + size, _MARGIN : _MARGIN + size]
        grain = rng.standard_normal((size, size, 1), np.float32) * noise
        clip[row] = np.clip(picture + grain, 0, 255)
    return clip


def _still_shapes(rng: Generator, tracks: Tracks) -> int:
    """How many shapes to add, so that the number of shapes in a frame says little of the class."""
    if len(tracks) > 1:
        return int(rng.random() < 0.25)
    blinks = np.min(tracks[0].opacity) == 0
    return int(rng.choice(3, p=(0, 0.7, 0.3) if blinks else (0.5, 0.35, 0.15)))


def _style(rng: Generator) -> _Style:
    """A bright shape in two colours. Backgrounds are dark: see `_background`."""
    colors = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    colors /= colors.max(1, keepdims=True)
    low, span = np.array([[150], [110]], np.float32), np.array([[105], [90]], np.float32)
    return _Style(
        _SHAPES[rng.integers(len(_SHAPES))],
        _PATTERNS[rng.integers(len(_PATTERNS))],
        low + span * colors,
        rng.uniform(8, 12.5),
    )


def _paint(
    picture: np.ndarray,
    style: _Style,
    x: float,
    y: float,
    scale: float,
    angle: float,
    opacity: float,
) -> None:
    """Draw a shape into float32 [H, W, 3], in place; parts outside are cut off."""
    radius = style.radius * scale
    reach = int(1.5 * radius) + 2
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    window = picture[top : int(y) + reach + 1, left : int(x) + reach + 1]
    if opacity <= 0 or 0 in window.shape:
        return
    rows = np.arange(top, top + window.shape[0], dtype=np.float32)[:, None] + 0.5 - np.float32(y)
    columns = np.arange(left, left + window.shape[1], dtype=np.float32) + 0.5 - np.float32(x)
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    u, v = cos * columns + sin * rows, cos * rows - sin * columns
    # Distances are in radii; half a pixel to either side of an edge is mixed.
    inside = np.clip(0.5 - style.shape(u, v) * radius, 0, 1) * opacity
    share = np.clip(0.5 - style.pattern(u, v) * radius, 0, 1)[..., None]
    color = style.colors[1] + (style.colors[0] - style.colors[1]) * share
    window += inside[..., None] * (color - window)


def _background(rng: Generator, size: int) -> np.ndarray:
    """Flat, gradient, soft noise or stripes; float32 [size, size, 3].

    Darker than any shape. With shapes of either polarity a model first has to learn what a shape is
    (still at chance after 10,000 clips); with this one it can start on how shapes move.
    """
    a, b = rng.uniform(10, 100, (2, 3)).astype(np.float32)
    b = a + (b - a) * rng.uniform(0.25, 0.6)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * x + np.sin(angle) * y
    kind = rng.integers(4)
    if kind == 0:
        share = np.zeros_like(x)
    elif kind == 1:
        share = (ramp - ramp.min()) / np.ptp(ramp)
    elif kind == 2:
        share = _soft_noise(rng, size)
    else:
        share = 0.5 + 0.5 * np.clip(3 * np.sin(2 * np.pi * rng.uniform(3, 7) * ramp), -1, 1)
    return a + (b - a) * share[..., None].astype(np.float32)


def _soft_noise(rng: Generator, size: int) -> np.ndarray:
    """Random values on a coarse grid, joined linearly."""
    cells = int(rng.integers(5, 12))
    grid = rng.uniform(0, 1, (cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    low = at.astype(int)
    part = at - low
    rows = grid[low] + (grid[low + 1] - grid[low]) * part[:, None]
    return rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part


def _camera(rng: Generator, t: np.ndarray) -> np.ndarray:
    """Slow drift of the picture behind the shapes, [T, 2] pixels, at most 2 to either side."""
    amount = rng.uniform(0, 2, 2) * rng.integers(2)
    phase, period = rng.uniform(0, 2 * np.pi, 2), rng.uniform(20, 40, 2)
    return amount * np.sin(2 * np.pi * t[:, None] / period + phase)


def _shifted(picture: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Copy moved by a part of a pixel; what comes in at the edges repeats the other side."""
    for axis, shift in ((1, dx), (0, dy)):
        whole = int(np.floor(shift))
        part = np.float32(shift - whole)
        low = np.roll(picture, whole, axis)
        picture = low if part == 0 else low + (np.roll(picture, whole + 1, axis) - low) * part
    return picture.copy()
