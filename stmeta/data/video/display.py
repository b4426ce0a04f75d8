"""How a viewer shows the pictures of a video: turned, mirrored, with pixels that are not square."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

# Wider pixels than any standard has; a file that says so is wrong, and would be stored huge.
WIDEST = 8.0


class Display(NamedTuple):
    """What to do with a stored picture, in this order.

    Attributes:
        rotation: clockwise degrees to turn it by: 0, 90, 180 or 270.
        mirror: whether to mirror it left to right, once it is turned.
        aspect: width of a stored pixel over its height.
    """

    rotation: int = 0
    mirror: bool = False
    aspect: float = 1.0

    @property
    def stored(self) -> bool:
        """Whether the picture is shown as it is stored, but for the shape of its pixels."""
        return self.rotation == 0 and not self.mirror

    def upright(self, video: np.ndarray) -> np.ndarray:
        """Turn and mirror pictures [..., H, W, C]; a view."""
        if self.rotation:
            video = np.rot90(video, k=-self.rotation // 90, axes=(-3, -2))  # k counts ccw
        return video[..., ::-1, :] if self.mirror else video

    def square(self, height: int, width: int) -> tuple[float, float]:
        """Height and width of an upright picture in square pixels; stored rows stay as long."""
        if self.rotation in (90, 270):
            return height * self.aspect, float(width)
        return float(height), width * self.aspect


AS_STORED = Display()


def display_of(frame: av.VideoFrame, aspect: Fraction | float | None) -> Display:
    """How a frame is to be shown.

    Args:
        frame: bears the display matrix of its file or stream (ISO/IEC 14496-12, 8.3.2).
        aspect: as the stream gives it; None or absurd = square.
    """
    ratio = float(aspect or 1)
    ratio = ratio if 1 / WIDEST <= ratio <= WIDEST else 1.0
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return Display(aspect=ratio)
    # A point (x, y) of the picture, y downwards, is shown at (a x + c y, b x + d y).
    a, b, _, c, d = (float(value) for value in np.frombuffer(bytes(found), np.int32)[:5])
    mirror = a * d - b * c < 0
    if mirror:
        a = -a  # what is left is a turn
    turn = round(float(np.degrees(np.arctan2(b, a))) / 90) * 90 % 360
    return Display(turn, mirror, ratio)
