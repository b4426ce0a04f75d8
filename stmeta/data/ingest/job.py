"""The work on one video, as `ingest` hands it to a process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from av.error import FFmpegError

from stmeta._errors import DataError
from stmeta._util.machine_errors import NO_ROOM, StorageError, patiently, raise_if_machines
from stmeta.data.ingest.encode import CODECS, EncodeOptions
from stmeta.data.ingest.sources import Part
from stmeta.data.ingest.transcode import check_decodes, fits, transcode
from stmeta.data.video.probe import VideoInfo, probe

TOO_SHORT = "too short"
"""How the reason begins where a video is whole, but has fewer frames than wanted."""


@contextlib.contextmanager
def room(out: Path) -> Iterator[None]:
    """Say what to do where a disk is full, or the machine fails in another way."""
    try:
        yield
    except StorageError as error:
        raise DataError(
            f"{error}; the shards in {out} that were finished are whole: continue with --resume"
        ) from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DataError(
            f"{error.filename or out}: {os.strerror(error.errno)}; the shards in {out} that were "
            "finished are whole: make room, and continue with --resume"
        ) from error


class Job(NamedTuple):
    """A stretch of a file, and how to store it."""

    part: Part
    encode: EncodeOptions
    copy: bool


class EncodedVideo(NamedTuple):
    """The stored video, what `probe` says about it, and about the file that it was made of."""

    video: bytes
    extension: str
    info: VideoInfo
    source: VideoInfo


def encode_part(job: Job) -> EncodedVideo:
    """Make the video that is stored.

    Raises:
        DataError: the file is broken or too short; the message is the reason.
        StorageError: the machine fails, also after some tries, which says nothing about the video.
        OSError: there is no room for temporary files, which says nothing either.
    """
    return patiently(_encode, job)


def _encode(job: Job) -> EncodedVideo:
    part, options = job.part, job.encode
    try:
        info = probe(part.file)
        extension = os.path.splitext(part.file)[1][1:].lower()
        if job.copy and part == Part(part.file) and fits(info, extension, options):
            check_decodes(part.file, info)
            return EncodedVideo(Path(part.file).read_bytes(), extension, info, info)
        start, frames = _stretch(part, info, options)
        settings = dataclasses.asdict(options)
        video = transcode(part.file, info=info, start_seconds=start, frames=frames, **settings)
        stored = probe(video)
        if stored.frames < part.min_frames:
            raise DataError(f"{TOO_SHORT}: {stored.frames} of at least {part.min_frames} frames")
        return EncodedVideo(video, CODECS[options.codec].extension, stored, info)
    except (FFmpegError, OSError, ValueError, MemoryError) as error:
        number = getattr(error, "errno", None)
        if number in NO_ROOM:
            raise OSError(number, os.strerror(number), tempfile.gettempdir()) from error
        raise_if_machines(error, part.file)
        raise DataError(f"{type(error).__name__}: {error}") from error


def _stretch(part: Part, info: VideoInfo, options: EncodeOptions) -> tuple[float, int | None]:
    """Seconds to leave out at the start of a file, and how many frames to store at most."""
    if part.seconds is None:
        return 0.0, part.frames
    begin, end = part.seconds
    frames = max(1, round((end - begin) * (options.fps or info.fps)))
    start = begin if info.duration_seconds > end - begin + 1 else 0.0
    return start, min(frames, part.frames or frames)
