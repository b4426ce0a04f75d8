"""Finds the samples in a tar by its headers; nothing in it is extracted, executed or trusted.

Names in the tar are only ever compared and reported, never used as paths; no member is unpickled;
every size is checked against the file's own before a byte is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta._util.machine_errors import StorageError, raise_if_machines
from stmeta.data.shards.classes import MAX_LABELS
from stmeta.data.shards.sample import Sample, Video
from stmeta.data.shards.tar_samples import LARGEST_VIDEO, read_samples, text_of
from stmeta.data.video.display import Display


class SampleInfo(NamedTuple):
    """One sample of a shard, as the index has it.

    Attributes:
        key: name in the tar, up to the first dot; where a sample has several videos, with what
            their names have before the extension. Two shards may use the same one.
        shard: file name of the tar inside the split's folder.
        offset: bytes from the start of the tar to the video.
        size: bytes of the video.
        extension: of the video member, such as "mp4".
        label: position in classes.json; -1 = unlabelled.
        codec: FFmpeg's name, such as "h264".
        width: stored width in pixels, before `rotation`.
        height: stored height in pixels, before `rotation`.
        fps: mean frames per second.
        frames: number of frames.
        duration_seconds: length.
        variable_rate: whether the gaps between frames differ.
        keyframes: positions of the key frames, ascending; () where an index was opened without
            details.
        rotation: clockwise degrees (0, 90, 180, 270) to turn each frame by.
        error: why the sample cannot be used; "" = good.
        sha256: of the video, in hex; "" likewise.
        mirror: whether to mirror each frame left to right, once it is turned.
        aspect: width of a stored pixel over its height.
    """

    key: str
    shard: str
    offset: int
    size: int
    extension: str
    label: int
    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    variable_rate: bool
    keyframes: tuple[int, ...]
    rotation: int
    error: str
    sha256: str = ""
    mirror: bool = False
    aspect: float = 1.0

    @property
    def display(self) -> Display:
        """How a viewer shows it."""
        return Display(self.rotation, self.mirror, self.aspect)


def bad_sample(shard: str, error: str, *, key: str = "") -> SampleInfo:
    """Return the row of a sample, or of a whole shard (no key), that cannot be used."""
    return SampleInfo(key, shard, 0, 0, "", -1, "", 0, 0, 0.0, 0, 0.0, False, (), 0, error)


def scan_shard(path: Path, classes: Sequence[str] | None) -> list[SampleInfo]:
    """Describe every video of a shard, in file order; what is broken carries its reason.

    Args:
        path: the tar.
        classes: names of the labels, for labels given as text and to check their range; None =
            labels are taken as they are.
    """
    try:
        samples, faults, _ = read_samples(path)
    except OSError as error:
        raise_if_machines(error, path)
        return [bad_sample(path.name, f"the shard cannot be read: {error}")]
    rows = []
    with open(path, "rb") as file:
        for sample in samples:
            if sample.special and not (sample.members or sample.faults):
                continue
            rows += _rows(sample, file.fileno(), path.name, classes)
    if faults:
        rows.append(bad_sample(path.name, f"the shard: {'; '.join(faults)}"))
    return rows


def write_dali_index(path: Path) -> None:
    """Write the `.idx` that DALI's reader needs (its version 1.2), unless a newer one is there.

    Where the folder cannot be written to, nothing happens: only DALI's own reader needs the file.
    """
    index = path.with_suffix(".idx")
    try:
        if index.exists() and index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            return
        samples = [s for s in read_samples(path)[0] if s.members and not (s.faults or s.repeated)]
    except OSError:
        return
    lines = [f"v1.2 {len(samples)}"]
    for sample in samples:
        name = re.sub(r"\s", "_", sample.key)  # the file's fields are split at spaces
        parts = (
            f"{field} {at} {size} {name}.{field}" for field, (at, size) in sample.members.items()
        )
        lines.append(" ".join(parts))
    partial = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        os.replace(partial, index)
    partial.unlink(missing_ok=True)


def _rows(sample: Sample, fd: int, shard: str, classes: Sequence[str] | None) -> list[SampleInfo]:
    """A row for each video of a sample."""
    try:
        if sample.faults:
            raise DataError(sample.faults[0])
        if sample.repeated:
            raise DataError("the key occurs more than once in the shard")
        videos = sample.videos()
    except DataError as error:
        return [bad_sample(shard, str(error), key=sample.printable_key)]
    rows = []
    for video in videos:
        try:
            rows.append(_describe(sample, video, fd, shard, classes))
        except StorageError:
            raise
        except DataError as error:
            rows.append(bad_sample(shard, str(error), key=video.key))
    return rows


def _describe(
    sample: Sample, video: Video, fd: int, shard: str, classes: Sequence[str] | None
) -> SampleInfo:
    from stmeta.data.video.probe import probe  # PyAV is only needed to build an index

    offset, size = sample.members[video.field]
    if size > LARGEST_VIDEO:
        raise DataError(f"the video has {size} bytes; at most {LARGEST_VIDEO} are read")
    label = read_label(sample, video, fd, classes)
    content = os.pread(fd, size, offset)
    info = probe(content)
    _check_frames(sample, video, fd, info.frames)
    return SampleInfo(
        key=video.key,
        shard=shard,
        offset=offset,
        size=size,
        extension=video.extension,
        label=label,
        codec=info.codec,
        width=info.width,
        height=info.height,
        fps=info.fps,
        frames=info.frames,
        duration_seconds=info.duration_seconds,
        variable_rate=info.variable_rate,
        keyframes=info.keyframes,
        rotation=info.rotation,
        mirror=info.mirror,
        aspect=info.aspect,
        error="",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def read_label(sample: Sample, video: Video, fd: int, classes: Sequence[str] | None) -> int:
    """Return the label in .cls, else "label" in .json, a number or a class name; -1 = none.

    Args:
        sample: the video's.
        video: of which it is the label.
        fd: the open shard.
        classes: see `scan_shard`.

    Raises:
        DataError: it cannot be read, or is none of the classes.
    """
    text = None
    if field := sample.beside_video(video, "cls"):
        text = text_of(sample.members, field, fd)
    elif field := sample.beside_video(video, "json"):
        try:
            record = json.loads(text_of(sample.members, field, fd))
        except (ValueError, RecursionError) as error:
            raise DataError(f"json cannot be read: {error}") from error
        value = record.get("label") if isinstance(record, dict) else None
        text = None if value is None else str(value)
    if text is None:
        return -1
    number = re.fullmatch("[+-]?[0-9]+", text)
    if classes is not None and text in classes and not number:
        return list(classes).index(text)
    if not number:
        raise DataError(f"the label {text[:40]!r} is neither a number nor a known class")
    if len(text) > 18:
        raise DataError(f"the label {text[:40]}... has {len(text)} digits")
    label, most = int(text), MAX_LABELS if classes is None else len(classes)
    if -1 <= label < most:
        return label
    if classes is not None:
        raise DataError(f"the label {label} has no name among {most} classes")
    raise DataError(f"the label {label} is not in [-1, {most - 1}]; name classes in classes.json")


def declared_frames(sample: Sample, video: Video, fd: int) -> int | None:
    """What `.nframes` says; None = there is none, or none of 4 bytes."""
    field = sample.beside_video(video, "nframes")
    shared = field == "nframes" and video.key != sample.key  # of which of its videos?
    if field is None or shared or sample.members[field][1] != 4:
        return None
    return struct.unpack("<i", os.pread(fd, 4, sample.members[field][0]))[0]


def _check_frames(sample: Sample, video: Video, fd: int, frames: int) -> None:
    """A video may have lost its end and look whole; the frame count written with it knows."""
    declared = declared_frames(sample, video, fd)
    if declared is not None and frames < declared:
        raise DataError(f"truncated: the video has {frames} of {declared} frames")
