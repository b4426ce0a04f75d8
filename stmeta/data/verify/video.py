"""Checks one video of a shard: what its header says, every frame of it, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from stmeta._errors import DataError
from stmeta._util.machine_errors import StorageError, raise_if_machines
from stmeta.data.shards.tar_index import SampleInfo
from stmeta.data.storage.folder import read_part
from stmeta.data.video.file import open_video, video_stream
from stmeta.data.video.probe import VideoInfo, probe
from stmeta.data.video.timeline import in_order

LEVELS = ("tar", "header", "hash", "decode")
"""From cheap to dear; each includes those before it."""


class VideoJob(NamedTuple):
    """A video to check.

    Attributes:
        path: the shard.
        key: name of the sample.
        offset: bytes from the start of the shard to the video.
        size: bytes of the video; 0 = there is no video to read.
        label: as the tar has it.
        frames: as .nframes declares them; -1 = not known.
        faults: (level, reason) of what was found before.
        level: how far to go, one of `LEVELS`.
        indexed: whether there is an index to compare with.
        expected: the index's row.
    """

    path: str
    key: str
    offset: int
    size: int
    label: int
    frames: int
    faults: list[tuple[str, str]]
    level: str
    indexed: bool
    expected: SampleInfo | None


class VideoFaults(NamedTuple):
    """What was found.

    Attributes:
        faults: (level, reason), in the order of the levels; none = good.
        frames: frames of the video; 0 = it has no readable header, or was not read.
        remark: see `VideoInfo.remark`.
    """

    faults: list[tuple[str, str]]
    frames: int
    remark: str = ""


def check_video(job: VideoJob) -> VideoFaults:
    """Check one video up to the job's level."""
    faults = list(job.faults)
    if job.level == "tar" or job.size == 0:
        return VideoFaults(faults, max(job.frames, 0))
    try:
        video = _read(job)
    except StorageError:
        raise
    except DataError as error:
        return VideoFaults([*faults, ("tar", str(error))], 0)
    info = None
    try:
        info = probe(video)
    except StorageError:
        raise
    except DataError as error:
        faults.append(("header", str(error)))
    if info:
        faults += [("header", reason) for reason in _header_faults(job, info)]
    if LEVELS.index(job.level) >= LEVELS.index("hash"):
        faults += [("hash", reason) for reason in _hash_faults(job, video)]
    if info and job.level == "decode":
        reason = decode_fault(video, info)
        faults += [("decode", reason)] if reason else []
    if not faults and job.expected and job.expected.error:
        reason = f"the index lists it as bad ({job.expected.error}), but it is good; index it again"
        faults.append(("header", reason))
    return VideoFaults(faults, info.frames if info else 0, info.remark if info else "")


def decode_fault(video: bytes, info: VideoInfo) -> str:
    """Decode every frame; return what is wrong, or "".

    Decoders fill in what is damaged and go on. Here they are told to stop instead, and what they
    cannot tell is looked for: packets of zeros, where a file was given its length but not its
    content, and pictures of zeros at the end, which no encoder makes from a video.

    Args:
        video: the file's content.
        info: what `probe` says about it.
    """
    count = damaged = zeros = 0
    hollow: list[int] = []
    stopped = ""
    try:
        with open_video(video) as container:
            stream = video_stream(container)
            stream.codec_context.options |= {"err_detect": "explode"}
            for frame in in_order(_watch(container.demux(stream), hollow)):
                damaged += frame.is_corrupt
                zeros = zeros + 1 if _is_zero(frame) else 0
                count += 1
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise_if_machines(error)
        stopped = getattr(error, "strerror", None) or str(error)
    if hollow:
        count = len(hollow)
        return f"{count} of {info.frames} frames are zeros in the file, the first is {hollow[0]}"
    if stopped:
        return f"decoding stops after {count} of {info.frames} frames: {stopped}"
    if count != info.frames:
        return f"{count} of {info.frames} frames can be decoded"
    if damaged:
        return f"{damaged} of {count} frames are damaged"
    if 0 < zeros < count:
        return f"the last {zeros} of {count} pictures are zeros (not black)"
    return ""


def _watch(packets: Iterable[av.Packet], hollow: list[int]) -> Iterator[av.Packet]:
    """Hand packets on, and note the numbers of those that are all zeros."""
    number = 0
    for packet in packets:
        if packet.size and not any(bytes(packet)):
            hollow.append(number)
        number += packet.size > 0
        yield packet


def _read(job: VideoJob) -> bytes:
    return read_part(job.path, job.offset, job.size)


def _header_faults(job: VideoJob, info: VideoInfo) -> Iterator[str]:
    if job.frames >= 0 and job.frames != info.frames:
        yield f"nframes says {job.frames} frames, the video has {info.frames}"
    expected = job.expected
    if expected is None:
        if job.indexed:
            yield "it is not in the index; run `stmeta index`"
        return
    if expected.error:
        return
    found = info._asdict() | {"offset": job.offset, "size": job.size}
    if not job.faults:
        found["label"] = job.label
    names = ("offset", "size", "label", "codec", "width", "height", "frames")
    for name in names:
        if name in found and found[name] != getattr(expected, name):
            yield f"the index says {name} {getattr(expected, name)}, here it is {found[name]}"


def _hash_faults(job: VideoJob, video: bytes) -> Iterator[str]:
    # A bad row of the index has no hash, and its own reason.
    if job.expected is None or job.expected.error:
        return
    if not job.expected.sha256:
        yield "the index has no hash of it; run `stmeta index --full`"
    elif hashlib.sha256(video).hexdigest() != job.expected.sha256:
        yield "sha256 differs from the index's: the file changed since it was indexed"


def _is_zero(frame: av.VideoFrame) -> bool:
    """Whether luma and chroma are all zero: in YUV that is a green no camera gives, never black."""
    if not frame.format.name.startswith("yuv"):
        return False
    return not any(np.frombuffer(memoryview(plane), np.uint8).any() for plane in frame.planes)
