"""From a decoder's frames to pixels: whole frames in RGB, or a clip straight from the planes.

Video is stored as YUV 4:2:0: brightness (Y) of each pixel, and two differences of colour (U, V) at
half the size. Where a clip needs a part of each frame, resized, one pass of `stmeta._C` over the
planes takes a third of the time of FFmpeg's conversion and torch's resize, and gives the same
bits. Whether it does is tried out once for each kind of frame; others take the two steps.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from stmeta._errors import DataError
from stmeta.data.augment.crop import Window, crop_resize
from stmeta.data.video.colour import FULL_RANGE, check_matrix

_FORMATS = ("yuv420p", "yuvj420p")
# Shares of red and blue in brightness, by matrix coefficients of ITU-T H.273, table 4; a stream
# that does not say counts as BT.601.
_SHARES = {
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
}
_local = threading.local()
_log = logging.getLogger("stmeta.data")


class Kind(NamedTuple):
    """What the conversion of a frame depends on, in FFmpeg's names and numbers."""

    format: str
    height: int
    width: int
    colorspace: int
    color_range: int


class YuvVideo:
    """Frames as a decoder left them; all of one kind.

    Attributes:
        kind: of the frames.
        pictures: int64 [F, 5], per frame: addresses of Y, U and V; bytes per row of Y, of U and V.
        memory: what keeps the addresses valid.
    """

    def __init__(self, kind: Kind, pictures: np.ndarray, memory: Any) -> None:
        self.kind, self.pictures, self.memory = kind, pictures, memory

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the same frames in RGB, [F, H, W, 3]."""
        return len(self.pictures), self.kind.height, self.kind.width, 3

    def __getitem__(self, places: slice | np.ndarray) -> YuvVideo:
        """Some of the frames, not copied."""
        return YuvVideo(self.kind, self.pictures[places], self.memory)

    def crop_resize(self, window: Window, out: np.ndarray) -> None:
        """What `augment.crop_resize` does with the frames in RGB, to the bit."""
        convert, kind = _extension().crop_resize_yuv, self.kind
        pictures = np.ascontiguousarray(self.pictures)
        convert(pictures, kind[1:3], _colours(kind), tuple(map(int, window)), out)


def kind_of(frame: av.VideoFrame) -> Kind:
    """The kind of a frame."""
    space, levels = int(frame.colorspace), int(frame.color_range)
    return Kind(frame.format.name, frame.height, frame.width, space, levels)


def packable(kind: Kind) -> bool:
    """Whether frames of this kind are YUV 4:2:0 of 8 bits that `YuvVideo` describes."""
    # FFmpeg converts frames of an odd height by other formulas.
    return kind.format in _FORMATS and kind.height % 2 == 0 and kind.colorspace in _SHARES


def agrees(kind: Kind) -> bool:
    """Whether a clip straight from the planes has FFmpeg's and torch's pixels here."""
    if not packable(kind) or _extension() is None:
        return False
    # What FFmpeg does depends on where rows end, not on how long they are.
    height, width = min(kind.height, 16 + kind.height % 16), min(kind.width, 64 + kind.width % 64)
    return _tried(kind._replace(height=height, width=width))


def gather(
    frames: Sequence[av.VideoFrame], accept: Callable[[Kind], bool] = agrees
) -> YuvVideo | None:
    """Describe frames by their planes; None = they are of several kinds, or of a refused one.

    Each field of an interlaced frame has colours of its own, as FFmpeg knows.
    """
    kinds = {kind_of(frame) for frame in frames}
    if (
        any(frame.interlaced_frame for frame in frames)
        or len(kinds) != 1
        or not accept(kind := kinds.pop())
    ):
        return None
    pictures = np.array([_picture(frame) for frame in frames], np.int64)
    return YuvVideo(kind, pictures, frames)


def pack(video: YuvVideo) -> tuple[list[memoryview], tuple[Kind, np.ndarray]]:
    """What `gather` made, for another process.

    Returns:
        Parts of memory that are to follow each other there, and what `unpack` needs besides.
    """
    planes = [plane for frame in video.memory for plane in frame.planes]
    ends = np.cumsum([plane.buffer_size for plane in planes]).reshape(-1, 3)
    pictures = video.pictures.copy()
    pictures[:, :3] = np.concatenate([[0], ends.flat[:-1]]).reshape(-1, 3)
    return [memoryview(plane) for plane in planes], (video.kind, pictures)


def unpack(content: np.ndarray, kind: Kind, pictures: np.ndarray) -> YuvVideo:
    """What was packed, from uint8 [N] that holds its parts."""
    pictures[:, :3] += content.ctypes.data
    return YuvVideo(kind, pictures, content)


def _picture(frame: av.VideoFrame) -> tuple[int, ...]:
    y, u, v = frame.planes
    return y.buffer_ptr, u.buffer_ptr, v.buffer_ptr, y.line_size, u.line_size


def write_rgb(frame: av.VideoFrame, out: np.ndarray, index: int) -> None:
    """Convert a frame.

    Args:
        frame: of any kind.
        out: uint8 [H, W, 3], written.
        index: of the frame, for the message.

    Raises:
        DataError: the frame is not H × W.
    """
    height, width, _ = out.shape
    if (frame.height, frame.width) != (height, width):
        raise DataError(
            f"the picture size changes from {width}×{height} to {frame.width}×{frame.height} at "
            f"frame {index}"
        )
    check_matrix(frame)
    # A new scaler costs more than a frame's decoding, so each thread keeps one per kind of frame.
    kept: dict[tuple[int, int, str], VideoReformatter] = _local.__dict__.setdefault("scalers", {})
    kind = (width, height, frame.format.name)
    if kind not in kept:
        if len(kept) >= 16:
            kept.clear()
        kept[kind] = VideoReformatter()
    plane = kept[kind].reformat(frame, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
    out[...] = rows[:, : width * 3].reshape(height, width, 3)


@functools.lru_cache(maxsize=1)
def _extension() -> Any:
    """`stmeta._C`, or None."""
    from stmeta._extension import extension, extension_missing  # needs torch

    if hasattr(extension, "crop_resize_yuv"):
        return extension
    reason = extension_missing or "stmeta._C is an older build; build it again"
    _log.info("FFmpeg converts frames and torch resizes them, slower: %s", reason)
    return None


@functools.lru_cache(maxsize=4096)
def _colours(kind: Kind) -> tuple[int, ...]:
    """Factors of FFmpeg's libswscale: of Y; of V in red, U in blue, U and V in green; and black.

    They are rounded twice, to 2^-16 and then to 2^-13, as there.
    """
    full = kind.format == "yuvj420p" or kind.color_range == FULL_RANGE
    red, blue = _SHARES[kind.colorspace]
    green = 1 - red - blue
    exact = (
        2 * (1 - red),
        2 * (1 - blue),
        -2 * (1 - blue) * blue / green,
        -2 * (1 - red) * red / green,
    )
    # U and V span 224 steps where the range is not full, Y 219.
    steps = [round(value * 255 / 224 * 65536) for value in exact]
    if full:
        steps = [int(step * 224 / 255) for step in steps]
    luma = 65536 if full else 65536 * 255 // 219
    return (*(step + 4 >> 3 for step in (luma, *steps)), 0 if full else 16 << 3)


@functools.lru_cache(maxsize=4096)
def _tried(kind: Kind) -> bool:
    """Convert and resize random planes both ways and compare."""
    format, height, width, space, levels = kind
    frame = av.VideoFrame(width, height, format)
    frame.colorspace, frame.color_range = space, levels
    random = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(random.bytes(plane.buffer_size))
    rgb = np.empty((1, height, width, 3), np.uint8)
    write_rgb(frame, rgb[0], 0)
    planes = YuvVideo(kind, np.array([_picture(frame)], np.int64), frame)
    part = Window(height // 8, width // 8, -(-height * 3 // 4), -(-width * 3 // 4), True)
    whole = Window(0, 0, height, width, False)
    for window, size in ((whole, (height, width)), (part, (9, 11))):
        ours, theirs = (np.zeros((1, *size, 3), np.uint8) for _ in range(2))
        planes.crop_resize(window, ours)
        crop_resize(rgb, window, theirs)
        if not np.array_equal(ours, theirs):
            _log.info("FFmpeg converts frames like %s, and torch resizes them, slower", kind)
            return False
    return True
