"""Finds the samples in a tar by its headers; nothing in it is extracted, executed or trusted.

Names in the tar are only ever compared and reported, never used as paths; no member is unpickled;
every size is checked against the file's own before a byte is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError

EXTENSIONS = ("mp4", "webm", "avi", "mkv", "mov")
LARGEST_VIDEO = 2**31  # bytes; more than this is no clip, and a reader would hold it in memory
_LARGEST_TEXT = 2**20

Members = dict[str, tuple[int, int]]
"""Members of a sample: extension to offset and size in the shard, in bytes."""


class SampleInfo(NamedTuple):
    """One sample of a shard, as the index has it.

    Attributes:
        key: name in the tar, up to the first dot.
        shard: file name of the tar inside the split's folder.
        offset: bytes from the start of the tar to the video.
        size: bytes of the video.
        extension: of the video member: mp4, webm, avi, mkv or mov.
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


def bad_sample(shard: str, error: str, *, key: str = "") -> SampleInfo:
    """Return the row of a sample, or of a whole shard (no key), that cannot be used."""
    return SampleInfo(key, shard, 0, 0, "", -1, "", 0, 0, 0.0, 0, 0.0, False, (), 0, error)


def scan_shard(path: Path, classes: Sequence[str] | None) -> list[SampleInfo]:
    """Describe every sample of a shard, in file order; broken ones carry their reason.

    Args:
        path: the tar.
        classes: names of the labels, for labels given as text and to check their range; None =
            labels are taken as they are.
    """
    try:
        groups, tail = _groups(path)
    except (tarfile.TarError, OSError, ValueError) as error:
        return [bad_sample(path.name, f"the shard cannot be read: {error}")]
    rows = []
    with open(path, "rb") as file:
        for group in groups:
            try:
                rows.append(_describe(group, file.fileno(), path.name, classes))
            except DataError as error:
                rows.append(bad_sample(path.name, str(error), key=group.key))
    if tail:
        rows.append(bad_sample(path.name, tail))
    return rows


def write_dali_index(path: Path) -> None:
    """Write the `.idx` that DALI's reader needs (its version 1.2), unless a newer one is there.

    Where the folder cannot be written to, nothing happens: only DALI's own reader needs the file.
    """
    index = path.with_suffix(".idx")
    if index.exists() and index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return
    try:
        groups = [group for group in _groups(path)[0] if group.members and not group.error]
    except (tarfile.TarError, OSError, ValueError):
        return
    lines = [f"v1.2 {len(groups)}"]
    for group in groups:
        name = re.sub(r"\s", "_", group.key)  # the file's fields are split at spaces
        parts = (f"{ext} {at} {size} {name}.{ext}" for ext, (at, size) in group.members.items())
        lines.append(" ".join(parts))
    partial = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        os.replace(partial, index)
    partial.unlink(missing_ok=True)


@dataclasses.dataclass
class _Group:
    key: str
    members: Members = dataclasses.field(default_factory=dict)
    error: str = ""


def _groups(path: Path) -> tuple[list[_Group], str]:
    """Members by sample, in file order, and what is wrong with the end of the shard."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError("it is gzip-compressed; decompress it, as frames are read by offset")
    groups: dict[str, _Group] = {}
    tail = ""
    # ignore_zeros: shards that were concatenated have blocks of zeros between their parts.
    with tarfile.open(path, "r:", ignore_zeros=True) as tar:
        try:
            for member in tar:
                _place(member, groups, size)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            tail = f"the shard is damaged after {len(groups)} samples: {error}"
            if groups and list(groups.values())[-1].error:
                tail = ""  # the sample that is cut says so itself
    if not groups and not tail:
        tail = "the shard has no samples, or is not a tar"
    return list(groups.values()), tail


def _place(member: tarfile.TarInfo, groups: dict[str, _Group], size: int) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not (member.isreg() or member.islnk() or member.issym()):
        return
    key = f"{folder}/{stem}".removeprefix("./") if folder else stem
    group = groups.setdefault(key, _Group(key))
    extension = extension.rpartition(".")[2].lower()
    if not member.isreg() or member.issparse():
        group.error = f"{extension} is a link or a sparse file in the tar, not plain content"
    elif member.size < 0 or member.offset_data + member.size > size:
        group.error = f"the shard ends inside this sample's {extension}"
    elif extension in group.members:
        group.error = group.error or "the key occurs more than once in the shard"
    else:
        group.members[extension] = (member.offset_data, member.size)


def _describe(group: _Group, fd: int, shard: str, classes: Sequence[str] | None) -> SampleInfo:
    from stmeta.data.probe import probe  # PyAV is only needed to build an index

    if group.error:
        raise DataError(group.error)
    videos = [extension for extension in group.members if extension in EXTENSIONS]
    if len(videos) != 1:
        found = ", ".join(group.members) or "nothing"
        raise DataError(f"a sample needs one of {', '.join(EXTENSIONS)}; found {found}")
    offset, size = group.members[videos[0]]
    if size > LARGEST_VIDEO:
        raise DataError(f"the video has {size} bytes; at most {LARGEST_VIDEO} are read")
    label = read_label(group.members, fd, classes)
    content = os.pread(fd, size, offset)
    info = probe(content)
    _check_frames(group, fd, info.frames)
    return SampleInfo(
        key=group.key,
        shard=shard,
        offset=offset,
        size=size,
        extension=videos[0],
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
        error="",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _text(members: Members, fd: int, extension: str) -> str | None:
    if extension not in members:
        return None
    offset, size = members[extension]
    if size > _LARGEST_TEXT:
        raise DataError(f"{extension} has {size} bytes, which is no label")
    return os.pread(fd, size, offset).decode("utf-8", errors="replace").strip()


def read_label(members: Members, fd: int, classes: Sequence[str] | None) -> int:
    """Return the label in .cls, else "label" in .json, a number or a class name; -1 = none.

    Args:
        members: of the sample.
        fd: the open shard.
        classes: see `scan_shard`.

    Raises:
        DataError: it cannot be read, or is none of the classes.
    """
    text = _text(members, fd, "cls")
    if text is None and "json" in members:
        try:
            record = json.loads(_text(members, fd, "json") or "")
        except (ValueError, RecursionError) as error:
            raise DataError(f"json cannot be read: {error}") from error
        value = record.get("label") if isinstance(record, dict) else None
        text = None if value is None else str(value)
    if text is None:
        return -1
    if classes is not None and text in classes and not text.lstrip("-").isdigit():
        return list(classes).index(text)
    try:
        label = int(text[:20])
    except ValueError:
        raise DataError(f"the label {text[:40]!r} is neither a number nor a known class") from None
    if label < -1 or (classes is not None and label >= len(classes)):
        raise DataError(f"the label {label} has no name among {len(classes or ())} classes")
    return label


def _check_frames(group: _Group, fd: int, frames: int) -> None:
    """A video may have lost its end and look whole; the frame count written with it knows."""
    if group.members.get("nframes", (0, 0))[1] != 4:
        return
    offset, _ = group.members["nframes"]
    (declared,) = struct.unpack("<i", os.pread(fd, 4, offset))
    if frames < declared:
        raise DataError(f"truncated: the video has {frames} of {declared} frames")
