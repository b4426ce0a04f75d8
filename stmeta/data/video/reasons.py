"""Why a video cannot be read, in words that say what to do about it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from av.error import ArgumentError, FFmpegError, InvalidDataError

from stmeta._errors import DataError

_MAX_BOXES = 10_000  # an MP4 has a dozen, a fragmented one two for each fragment


def check_end(video: bytes | str | os.PathLike[str]) -> None:
    """Raise where a file ends inside of what it declares, and FFmpeg would not tell.

    That is a Matroska segment (RFC 9559), a block of a GIF, or a part of a fragmented MP4.

    Raises:
        DataError: the message is the reason.
    """
    fault = ""
    with _opened(video) as file:
        head, size = file.read(4096), _size(file)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            fault = _segment_fault(head, size)
        elif head[:4] == b"GIF8":
            fault = _gif_fault(file, size)
        elif head[4:8] == b"ftyp":
            fault = _mp4_fault(file, fragments=True)
    if fault:
        raise DataError(fault)


def _segment_fault(head: bytes, size: int) -> str:
    start = head.find(b"\x18\x53\x80\x67")
    if start < 0 or start + 5 > len(head) or head[start + 4] == 0:
        return ""
    length = 9 - head[start + 4].bit_length()
    raw = int.from_bytes(head[start + 4 : start + 4 + length], "big")
    value = raw & ((1 << 7 * length) - 1)
    if value == (1 << 7 * length) - 1:  # written live: the length is not known
        return ""
    end = start + 4 + length + value
    return f"truncated: {size} of {end} bytes are there" if end > size else ""


def _gif_fault(file: BinaryIO, size: int) -> str:
    """Whether a GIF ends inside of a block (GIF89a, appendix A); its end mark may be missing."""

    def skip(count: int) -> bytes:
        content = file.read(count)
        if len(content) < count:
            raise EOFError
        return content

    def colours(packed: int) -> None:
        skip(3 << (packed & 7) + 1 if packed & 128 else 0)

    file.seek(0)
    try:
        colours(skip(13)[10])
        while (kind := file.read(1)) in (b"\x21", b"\x2c"):
            if kind == b"\x2c":  # a picture
                colours(skip(9)[8])
            skip(1)
            while count := skip(1)[0]:
                skip(count)
    except EOFError:
        return f"truncated: its {size} bytes end inside of a picture"
    return ""


def why_not_read(error: Exception, video: bytes | str | os.PathLike[str]) -> str:
    """The reason for an error of opening or reading a file.

    Args:
        error: what was raised.
        video: the file's content, or its path.
    """
    with _opened(video) as file:
        head, fault = file.read(4096), ""
        if head[4:8] == b"ftyp":
            fault = _mp4_fault(file)
    if fault:
        return fault
    if isinstance(error, InvalidDataError) and not head.strip(b"\0"):
        return "not a video: the file starts with zeros"
    if isinstance(error, ArgumentError):
        return (
            "not a video, or not in a container that is read; text, pictures, playlists and bare "
            "sound are not"
        )
    if isinstance(error, InvalidDataError):
        return "not a video, or damaged at its start: no known container or no readable header"
    return f"cannot be read: {why_not_decoded(error)}"


def why_not_decoded(error: Exception) -> str:
    """FFmpeg's words for an error, where they are about the video."""
    if isinstance(error, FFmpegError) and error.errno == 1:
        # Decoders that fail with a plain -1 would seem to lack a permission.
        return "the decoder gave up without a reason"
    return getattr(error, "strerror", None) or str(error)


def _mp4_fault(file: BinaryIO, fragments: bool = False) -> str:
    """What is wrong with the boxes of an MP4 (ISO/IEC 14496-12, 4.2), "" if nothing is.

    Args:
        file: open.
        fragments: look for a fragment that is cut, and nothing else.
    """
    size, place, names, name, over = _size(file), 0, set(), b"", ""
    for _ in range(_MAX_BOXES):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            break
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0 = to the end; less would go on for ever
            names.add(name)
            break
        place += length
        if place > size:
            over = f"truncated: {size} of at least {place} bytes are there"
            break
        names.add(name)
    if fragments:
        return over if b"moof" in names and name in (b"moof", b"mdat") else ""
    if b"moov" not in names:
        return "the MP4 has no usable index (moov box): truncated, or not finished when written"
    return over


def _opened(video: bytes | str | os.PathLike[str]) -> BinaryIO:
    return io.BytesIO(video) if isinstance(video, bytes) else open(Path(video), "rb")


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)
