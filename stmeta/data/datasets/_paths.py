"""How the shapes of the `motions` data set move: one function per class.

Each takes a random generator and the frame numbers [T] and returns one track per moving shape.
Lengths are in pixels from the picture's centre, x to the right and y down; angles are in radians,
growing clockwise as seen. Every random range is such that the frame in the middle of a clip looks
alike in all classes: movements pass the centre half-way, and shapes that stay in their place lie
anywhere that moving ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator


class Track(NamedTuple):
    """One shape over time; every entry is float64 [T] or a number.

    Attributes:
        x: to the right of the centre, pixels.
        y: below the centre, pixels.
        scale: factor of the shape's size.
        angle: clockwise turn, radians.
        opacity: 0 = invisible.
    """

    x: np.ndarray | float = 0.0
    y: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0
    angle: np.ndarray | float = 0.0
    opacity: np.ndarray | float = 1.0


Tracks = list[Track]
Motion = Callable[[Generator, np.ndarray], Tracks]


def _progress(t: np.ndarray) -> np.ndarray:
    """From -0.5 to 0.5 over the clip."""
    return t / (len(t) - 1) - 0.5


def _place(rng: Generator, width: float = 18, height: float = 18) -> tuple[float, float]:
    return rng.uniform(-width, width), rng.uniform(-height, height)


def _triangle(cycles: np.ndarray) -> np.ndarray:
    """Triangle wave in [-1, 1] of period 1."""
    return 4 * np.abs((cycles + 0.25) % 1 - 0.5) - 1


def _move(degrees: float) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        distance = rng.uniform(27, 38) * _progress(t)
        # Free across the movement, near the centre along it, so that it stays in the picture.
        along, across = rng.uniform(-11, 11), rng.uniform(-18, 18)
        angle = np.deg2rad(degrees)
        cos, sin = np.cos(angle), np.sin(angle)
        return [
            Track(
                (distance + along) * cos - across * sin,
                (distance + along) * sin + across * cos,
            )
        ]

    return motion


def _rotate(sign: int) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        return [Track(*_place(rng), angle=sign * rng.uniform(2.6, 4.2) * _progress(t))]

    return motion


def _zoom(sign: int) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        ratio = np.log(rng.uniform(2.3, 3.2))
        return [Track(*_place(rng, 14, 14), scale=np.exp(sign * ratio * _progress(t)))]

    return motion


def _orbit(sign: int) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        x, y = _place(rng, 8, 8)
        turn = rng.uniform(0, 2 * np.pi) + sign * rng.uniform(5, 7.5) * _progress(t)
        radius = rng.uniform(12, 17)
        return [Track(x + radius * np.cos(turn), y + radius * np.sin(turn))]

    return motion


def _shake(vertical: bool) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        x, y = _place(rng, 14, 14)
        swing = rng.uniform(6, 9) * np.sin(2 * np.pi * (t / rng.uniform(5, 7) + rng.uniform()))
        return [Track(x, y + swing)] if vertical else [Track(x + swing, y)]

    return motion


def _blink(shortest: float, longest: float) -> Motion:
    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        phase = (t / rng.uniform(shortest, longest) + rng.uniform()) % 1
        return [Track(*_place(rng), opacity=np.where(phase < 0.6, 1.0, 0.0))]

    return motion


def _pair(ratio_at: Callable[[np.ndarray], np.ndarray]) -> Motion:
    """Two shapes on a line through a common centre; their distance changes over the clip."""

    def motion(rng: Generator, t: np.ndarray) -> Tracks:
        x, y = _place(rng, 5, 5)
        direction = rng.uniform(0, 2 * np.pi)
        half = rng.uniform(14, 16) + rng.uniform(16, 20) * ratio_at(_progress(t)) / 2
        dx, dy = half * np.cos(direction), half * np.sin(direction)
        return [Track(x + dx, y + dy), Track(x - dx, y - dy)]

    return motion


def _swap(rng: Generator, t: np.ndarray) -> Tracks:
    """Two shapes change places on a half circle."""
    x, y = _place(rng, 5, 5)
    sign = rng.choice([-1, 1])
    turn = rng.uniform(0, 2 * np.pi) + sign * rng.uniform(0.95, 1.1) * np.pi * _progress(t)
    half = rng.uniform(11, 18)
    dx, dy = half * np.cos(turn), half * np.sin(turn)
    return [Track(x + dx, y + dy), Track(x - dx, y - dy)]


def _bounce(rng: Generator, t: np.ndarray) -> Tracks:
    """Parabolas above a floor."""
    height = rng.uniform(24, 32)
    phase = (t / rng.uniform(10, 13) + rng.uniform()) % 1
    y = rng.uniform(10, 20) - height * 4 * phase * (1 - phase)
    return [Track(rng.uniform(-16, 16) + rng.uniform(-6, 6) * _progress(t), y)]


def _zigzag(rng: Generator, t: np.ndarray) -> Tracks:
    x = rng.choice([-1, 1]) * rng.uniform(26, 36) * _progress(t) + rng.uniform(-10, 10)
    wave = rng.uniform(7, 10) * _triangle(t / rng.uniform(7, 9) + rng.uniform())
    return [Track(x, rng.uniform(-12, 12) + wave)]


def _spiral(rng: Generator, t: np.ndarray) -> Tracks:
    """Outwards, in either sense."""
    x, y = _place(rng, 6, 6)
    radius = rng.uniform(11.5, 13) + rng.uniform(17, 20) * _progress(t)
    turn = rng.uniform(0, 2 * np.pi) + rng.choice([-1, 1]) * rng.uniform(8, 10) * _progress(t)
    return [Track(x + radius * np.cos(turn), y + radius * np.sin(turn))]


def _pulse(rng: Generator, t: np.ndarray) -> Tracks:
    wave = np.sin(2 * np.pi * (t / rng.uniform(7, 9) + rng.uniform()))
    return [Track(*_place(rng, 14, 14), scale=np.exp(rng.uniform(0.38, 0.5) * wave))]


def _pause(rng: Generator, t: np.ndarray) -> Tracks:
    """Go, stand still, go on in the same direction."""
    pace = np.where(np.abs(_progress(t) + rng.uniform(-0.06, 0.06)) < 0.17, 0.0, 1.0)
    distance = np.cumsum(pace)
    distance = rng.uniform(30, 40) * ((distance - distance[0]) / np.ptp(distance) - 0.5)
    along, across = rng.uniform(-10, 10), rng.uniform(-18, 18)
    angle = rng.integers(4) * np.pi / 2
    cos, sin = np.cos(angle), np.sin(angle)
    return [Track((distance + along) * cos - across * sin, (distance + along) * sin + across * cos)]


MOTIONS: dict[str, Motion] = {
    # To learn from.
    "move_right": _move(0),
    "move_down": _move(90),
    "move_left": _move(180),
    "move_up": _move(270),
    "rotate_clockwise": _rotate(1),
    "zoom_in": _zoom(1),
    "orbit_clockwise": _orbit(1),
    "shake_sideways": _shake(False),
    "blink_slowly": _blink(10, 12),
    "meet": _pair(lambda p: -2 * p),
    "swap": _swap,
    "bounce": _bounce,
    "zigzag": _zigzag,
    "spiral": _spiral,
    "pulse": _pulse,
    "pause": _pause,
    # Held out: new motions of the kinds above.
    "move_up_right": _move(315),
    "move_down_left": _move(135),
    "rotate_counterclockwise": _rotate(-1),
    "zoom_out": _zoom(-1),
    "orbit_counterclockwise": _orbit(-1),
    "shake_up_down": _shake(True),
    "blink_fast": _blink(4, 5),
    "part": _pair(lambda p: 2 * p),
}
HELD_OUT = 8
"""The last so many classes are not in train and val."""
