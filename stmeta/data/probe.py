"""What a video file holds, read from its headers and packets; only one frame is decoded.

A file that cannot be read to its declared end is refused with the reason: an empty file, no video
container, no index ("moov"), or data that stops early.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError

from stmeta._errors import DataError
from stmeta.data.video_file import open_video, video_stream

# Containers written by a recorder that may end anywhere: a cut last packet is normal there.
_STREAMED = {"mpegts", "mpeg", "h264", "hevc", "flv"}
# In AVI, MPEG-4 B-frames are packed two to a packet and their time stamps are wrong, so neither the
# packet count nor the time order can be trusted; these files are decoded once to count.
_PACKED = {("avi", "mpeg4"), ("avi", "msmpeg4v3"), ("avi", "msmpeg4v2")}


class VideoInfo(NamedTuple):
    """Facts about the first video stream of a file.

    Attributes:
        codec: FFmpeg's name of the format, such as "h264" or "vp9".
        width: stored width in pixels, before `rotation` is applied.
        height: stored height in pixels, before `rotation` is applied.
        fps: mean frames per second.
        frames: frames that decoding in order yields.
        duration_seconds: from the first frame's start to the last frame's end.
        variable_rate: whether the gaps between frames differ by more than rounding.
        keyframes: positions of the key frames in display order, ascending.
        rotation: clockwise degrees, one of 0, 90, 180, 270, that a viewer must turn each frame by.
        container: FFmpeg's short format name, such as "mp4", "matroska" or "avi".
    """

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    variable_rate: bool
    keyframes: tuple[int, ...]
    rotation: int
    container: str


def probe(video: bytes | str | os.PathLike[str]) -> VideoInfo:
    """Describe a video without decoding more than one frame.

    Args:
        video: the file's content, or its path.

    Raises:
        DataError: the video is empty, truncated or not a video; the message is the reason alone,
            so that the caller can put the file's name before it.
    """
    if not isinstance(video, bytes):
        path = Path(video)
        if not path.is_file():
            raise DataError("the file is missing")
        size = path.stat().st_size
    else:
        size = len(video)
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    head = _head(video)
    _check_segment(head, size)
    try:
        with open_video(video) as container:
            return _describe(container, size)
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise DataError(_reason(error, head)) from error


def _describe(container: InputContainer, size: int) -> VideoInfo:
    stream = video_stream(container)
    codec = stream.codec_context
    name = container.format.name.split(",")[0].replace("mov", "mp4")
    if name == "mp4" and any(e.pos + e.size > size for e in stream.index_entries):
        kept = sum(e.pos + e.size <= size for e in stream.index_entries)
        total = len(stream.index_entries)
        raise DataError(f"truncated: the data ends after {kept} of {total} frames")
    first, packets = _scan(container, stream)
    if not packets:
        raise DataError("the video stream has no frames")
    if name == "avi" and len(packets) < 0.95 * stream.frames:
        raise DataError(f"truncated: the data ends after {len(packets)} of {stream.frames} frames")
    if packets[-1].is_corrupt and name not in _STREAMED:
        raise DataError(f"truncated: the data ends inside frame {len(packets)}")
    if first is None:
        raise DataError(f"the first frame cannot be decoded ({codec.name})")
    if codec.width < 1 or codec.height < 1:
        raise DataError(f"the picture size {codec.width}×{codec.height} is not valid")
    pts = [packet.pts for packet in packets]
    if (name, codec.codec.canonical_name) in _PACKED:
        flags = _decode_all(container, stream)
        frames, keyframes = len(flags), tuple(i for i, flag in enumerate(flags) if flag)
        seconds, variable = _constant_times(frames, stream), False
    else:
        frames = len(packets)
        order = _display_order(pts)
        keyframes = tuple(sorted(int(order[i]) for i, p in enumerate(packets) if p.is_keyframe))
        seconds, variable = _times(pts, packets, stream)
    return VideoInfo(
        codec=codec.codec.canonical_name,
        width=codec.width,
        height=codec.height,
        fps=_rate(stream, frames / seconds, variable),
        frames=frames,
        duration_seconds=seconds,
        variable_rate=variable,
        keyframes=keyframes,
        rotation=round(-first.rotation / 90) * 90 % 360,
        container=name,
    )


def _scan(
    container: InputContainer, stream: av.VideoStream
) -> tuple[av.VideoFrame | None, list[av.Packet]]:
    """Read every packet and decode the first frame; return both.

    Packets that an edit list hides are left out, as the decoder drops their frames.
    """
    first, packets, fed = None, [], 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        # Keyframe, then flush: the frame comes out at once, whatever the reordering delay.
        if first is None and fed < 4 and packet.is_keyframe:
            fed += 1
            decoded = stream.codec_context.decode(packet) + stream.codec_context.decode(None)
            first = decoded[0] if decoded else None
            stream.codec_context.flush_buffers()
        if not packet.is_discard:
            packets.append(packet)
    return first, packets


def _decode_all(container: InputContainer, stream: av.VideoStream) -> list[bool]:
    """Decode the whole stream; return one key-frame flag per frame."""
    container.seek(0)
    stream.codec_context.flush_buffers()
    return [bool(frame.key_frame) for frame in container.decode(stream)]


def _display_order(pts: Sequence[int | None]) -> np.ndarray:
    """Rank of each packet by time; packets without time stamps stay in file order."""
    if any(value is None for value in pts):
        return np.arange(len(pts))
    order = np.empty(len(pts), np.int64)
    order[np.argsort(np.array(pts, np.int64), kind="stable")] = np.arange(len(pts))
    return order


def _times(
    pts: Sequence[int | None], packets: list[av.Packet], stream: av.VideoStream
) -> tuple[float, bool]:
    """Duration in seconds, and whether the frame rate varies."""
    known = np.sort(np.array([value for value in pts if value is not None], np.int64))
    if len(known) < len(pts) or len(known) < 2 or known[0] == known[-1]:
        return _constant_times(len(pts), stream), False
    gaps = np.diff(known)
    usual = float(np.median(gaps))
    # Containers with coarse ticks (1 ms in Matroska) round: 33, 33, 34. A lost frame doubles a gap.
    variable = bool(np.abs(gaps - usual).max() > max(1.5, 0.25 * usual))
    latest = max((p for p in packets if p.pts is not None), key=lambda p: p.pts or 0)
    last = latest.duration or round(usual)
    return float((known[-1] - known[0] + last) * stream.time_base), variable


def _constant_times(frames: int, stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate or 25
    return frames / float(rate)


def _rate(stream: av.VideoStream, measured: float, variable: bool) -> float:
    """The declared rate where it is the measured one up to the container's rounding."""
    declared = float(stream.average_rate or 0)
    return declared if not variable and abs(declared - measured) < 0.01 * measured else measured


def _head(video: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(video, bytes):
        return video[:4096]
    with open(video, "rb") as file:
        return file.read(4096)


def _check_segment(head: bytes, size: int) -> None:
    """Raise where a Matroska segment declares more bytes than the file has (RFC 9559)."""
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return
    start = head.find(b"\x18\x53\x80\x67")
    if start < 0 or start + 5 > len(head) or head[start + 4] == 0:
        return
    length = 9 - head[start + 4].bit_length()
    raw = int.from_bytes(head[start + 4 : start + 4 + length], "big")
    value = raw & ((1 << 7 * length) - 1)
    if value == (1 << 7 * length) - 1:  # written live: the length is not known
        return
    end = start + 4 + length + value
    if end > size:
        raise DataError(f"truncated: {size} of {end} bytes are there")


def _reason(error: Exception, head: bytes) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if head[4:8] == b"ftyp":
        return "the MP4 has no usable index (moov box): truncated, or not finished when written"
    if isinstance(error, InvalidDataError) and not head.strip(b"\0"):
        return "not a video: the file starts with zeros"
    if isinstance(error, ArgumentError):
        return "not a video: text, pictures and playlists are not read"
    if isinstance(error, InvalidDataError):
        return "not a video, or damaged at its start: no known container or no readable header"
    return f"cannot be read: {text}"
