"""The colours of decoded frames: their range, and which matrices are converted to RGB."""

from __future__ import annotations

import av

from stmeta._errors import DataError

FULL_RANGE = 2  # of AVColorRange: black is 0 and white 255, not 16 and 235
_CONVERTED = (0, 1, 2, 4, 5, 6, 7, 9)


def is_full_range(frame: av.VideoFrame) -> bool:
    """Whether black is 0 and white 255 in the planes of a frame, not 16 and 235."""
    name = frame.format.name
    return name.startswith("yuvj") or (name.startswith("yuv") and frame.color_range == FULL_RANGE)


def known_matrix(frame: av.VideoFrame) -> bool:
    """Whether FFmpeg's scaler converts such a frame to RGB."""
    coloured = frame.format.name.startswith(("yuv", "nv", "p0"))
    return not coloured or int(frame.colorspace) in _CONVERTED


def check_matrix(frame: av.VideoFrame) -> None:
    """Refuse a frame that cannot be converted.

    Raises:
        DataError: the message is the reason.
    """
    if not known_matrix(frame):
        raise DataError(
            f"its colour matrix is number {int(frame.colorspace)} of ITU-T H.273, which is not "
            "converted to RGB; encode it as BT.709"
        )
