"""How much a video may ask for: pixels of one picture, and of all frames of a clip.

A file of three megabytes can hold pictures of 67 megapixels, which would be gigabytes in memory
before a clip of 32 x 32 pixels is cut from them. Both limits are above what cameras record, and can
be set in the environment, which processes hand on to those that they start.
"""

from __future__ import annotations

import os

from stmeta._errors import DataError

PICTURE = "STMETA_PICTURE_MEGAPIXELS"
CLIP = "STMETA_CLIP_MEGAPIXELS"
_DEFAULT = {PICTURE: 36.0, CLIP: 540.0}  # one picture of 8K video; 260 frames of 1080p

_PART = 2**26  # pixels: 100 MB as they are decoded, 200 MB in RGB


def picture_pixels() -> int:
    """Most pixels of one picture.

    Raises:
        ValueError: the environment says something that is no number above 0.
    """
    return _limit(PICTURE)


def check_picture(width: int, height: int) -> None:
    """Refuse a video of larger pictures.

    Raises:
        DataError: they have too many pixels; the message is the reason.
    """
    if width * height > picture_pixels():
        raise DataError(
            f"its pictures are too large: {width}×{height} is {_mega(width * height)}, at most "
            f"{_mega(picture_pixels())} are read; raise ${PICTURE} if they are wanted"
        )


def check_clip(frames: int, width: int, height: int) -> None:
    """Refuse to decode so many frames at once.

    Raises:
        DataError: they have too many pixels; the message is the reason.
    """
    most, pixels = _limit(CLIP), frames * width * height
    if pixels > most:
        raise DataError(
            f"the clip is too large: {frames} frames of {width}×{height} are {_mega(pixels)}, at "
            f"most {_mega(most)} are decoded for a clip; store smaller videos (`stmeta shard "
            f"--short-side`), or raise ${CLIP}"
        )


def frames_at_once(width: int, height: int) -> int:
    """Frames that are decoded before they are cut and resized, where a clip has more."""
    return max(1, _PART // max(1, width * height))


def _limit(name: str) -> int:
    text = os.environ.get(name)
    try:
        value = float(text) if text else _DEFAULT[name]
    except ValueError:
        value = 0.0
    if not 0 < value < 2**31:
        raise ValueError(f"${name} must be a number of megapixels above 0, got {text!r}")
    return max(1, round(value * 1e6))


def _mega(pixels: int) -> str:
    return f"{pixels / 1e6:.3g} megapixels"
