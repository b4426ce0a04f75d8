"""Checks a shard's structure strictly; the index's own reader is lenient.

Reading a shard skips what it does not know, so that other people's shards can be used. Here the
same things are faults of a shard that this library wrote: members of one sample that lie apart, a
missing label or frame count, entries that belong to no sample. A shard from elsewhere is judged by
its videos, and by what keeps the index from using them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta._util.machine_errors import raise_if_machines
from stmeta.data.shards.sample import Members, Sample, Video
from stmeta.data.shards.tar_headers import BLOCK
from stmeta.data.shards.tar_index import declared_frames, read_label
from stmeta.data.shards.tar_samples import LARGEST_TEXT, LARGEST_VIDEO, is_own, read_samples
from stmeta.data.video.containers import EXTENSIONS

_LARGEST_OTHER = 2**26  # labels, JSON, an audio track; more is no companion of a clip
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


class TarSample(NamedTuple):
    """One video of a shard, or a sample that has none.

    Attributes:
        key: as the index has it.
        members: field to (offset, size) in bytes; all of the sample.
        field: of the video, such as "mp4"; "" = there is none, or it is not clear which.
        label: position in classes.json; -1 = unlabelled or not readable.
        frames: what .nframes says; -1 = nothing that can be read.
        faults: what is wrong, in the order in which it was found.
    """

    key: str
    members: Members
    field: str
    label: int
    frames: int
    faults: list[str]


def check_tar(path: Path, classes: Sequence[str] | None) -> tuple[list[TarSample], list[str]]:
    """Read the headers and the small members of a shard; no video is read.

    Args:
        path: the tar.
        classes: names of the labels; None = labels may be any number.

    Returns:
        The samples in file order, and what is wrong with the shard as a whole.
    """
    try:
        samples, faults, strange = read_samples(path)
        own = is_own(samples)
        if own:
            faults += [f"the member {name!r} belongs to no sample" for name in strange[:8]]
        with open(path, "rb") as file:
            fd = file.fileno()
            if own and not faults:
                faults += _end(fd)
            found = [one for s in samples for one in _checked(s, fd, classes, own)]
    except FileNotFoundError:
        return [], ["the shard is missing"]
    except OSError as error:
        raise_if_machines(error, path)
        return [], [f"cannot be read: {error.strerror or error}"]
    return found, faults


def _end(fd: int) -> list[str]:
    """After the last member come two blocks of zeros, and nothing else."""
    size = os.fstat(fd).st_size
    if size % BLOCK or any(os.pread(fd, 2 * BLOCK, size - 2 * BLOCK)):
        return ["its end mark is missing: cut, or not finished when written"]
    return []


def _checked(
    sample: Sample, fd: int, classes: Sequence[str] | None, own: bool
) -> Iterator[TarSample]:
    """A sample for each of its videos."""
    faults = [*(_strict_faults(sample) if own else ()), *sample.faults]
    faults += [f"{field} occurs more than once" for field in sample.repeated]
    faults += [f"the name {name[:80]!r} leads out of the folder" for name in sample.paths[:1]]
    if not own and sample.special and not (sample.members or sample.faults):
        return
    videos: list[Video] = []
    try:
        videos = sample.videos()
    except DataError as error:
        # A sample that is cut, linked or scattered is not asked for the members that it lost.
        faults += [] if faults else [str(error)]
    for video in videos:
        yield _video(sample, video, fd, classes, own, faults)
    if not videos:
        yield TarSample(sample.printable_key, sample.members, "", -1, -1, faults)


def _strict_faults(sample: Sample) -> Iterator[str]:
    for field in sample.special:
        yield f"{field} is a link, a device or a sparse file, not a plain file"
    if sample.scattered:
        yield "its members do not lie next to each other in the shard"
    if not sample.paths and not _KEY.fullmatch(sample.key):
        yield f"the key {sample.printable_key[:80]!r} may only have letters, digits, '_' and '-'"
    for field, (_, size) in sample.members.items():
        limit = LARGEST_VIDEO if field.rpartition(".")[2] in EXTENSIONS else _LARGEST_OTHER
        if size > limit:
            yield f"{field} has {size} bytes; at most {limit} are read"


def _video(
    sample: Sample,
    video: Video,
    fd: int,
    classes: Sequence[str] | None,
    own: bool,
    faults: list[str],
) -> TarSample:
    label, frames = -1, -1
    faults = list(faults)
    if not faults:
        if sample.members[video.field][1] == 0:
            faults.append(f"{video.field} is empty (0 bytes)")
        try:
            label = read_label(sample, video, fd, classes)
        except DataError as error:
            faults.append(str(error))
        if own:
            record = _json(sample, video, fd)
            if record is None:
                faults.insert(0, "json is not a JSON object")
            faults += _label_faults(sample, video, record or {})
            faults += _frames_faults(sample, video, fd)
        if not faults:
            frames = declared_frames(sample, video, fd)
            frames = -1 if frames is None else frames
    return TarSample(video.key, sample.members, video.field, label, frames, faults)


def _json(sample: Sample, video: Video, fd: int) -> dict | None:
    """What the sample's JSON says; {} = there is none, None = it is no JSON object."""
    field = sample.beside_video(video, "json")
    if field is None:
        return {}
    offset, size = sample.members[field]
    try:
        record = json.loads(os.pread(fd, size, offset)) if size <= LARGEST_TEXT else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _label_faults(sample: Sample, video: Video, record: dict) -> Iterator[str]:
    if sample.beside_video(video, "cls") is None and "label" not in record:
        yield "the label is missing: there is no .cls, and no label in .json"


def _frames_faults(sample: Sample, video: Video, fd: int) -> Iterator[str]:
    field = sample.beside_video(video, "nframes")
    frames = declared_frames(sample, video, fd)
    if field is None:
        yield "nframes is missing"
    elif frames is None:
        yield f"nframes has {sample.members[field][1]} bytes; it is a little-endian int32"
    elif frames < 1:
        yield f"nframes says {frames} frames"
