"""What is in a split, in a shard, or in one sample: counts, ranges, reasons, pictures."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stmeta._errors import DataError
from stmeta.data.shards.classes import read_classes
from stmeta.data.shards.sample import Members
from stmeta.data.shards.tar_index import scan_shard
from stmeta.data.shards.tar_samples import LARGEST_TEXT, LARGEST_VIDEO
from stmeta.data.shards.writer import SampleInfo, ShardIndex
from stmeta.data.storage.folder import is_address
from stmeta.data.verify.tar import check_tar

_COLUMNS = (
    *("key", "shard", "size", "label", "codec", "width", "height", "fps", "frames"),
    *("duration_seconds", "variable_rate", "rotation", "mirror", "aspect"),
)


class Range(NamedTuple):
    """Spread of a number over the samples."""

    min: float
    median: float
    max: float


@dataclasses.dataclass
class Summary:
    """A split or a shard."""

    path: str
    shards: int
    samples: int
    """Good samples."""
    frames: int
    bytes: int
    """Of the videos."""
    seconds: float
    """Length of all videos."""
    classes: dict[str, int]
    """Samples of each class, in the order of the labels; "unlabelled" last, where there are any."""
    codecs: dict[str, int]
    """Samples by codec, the most frequent first; likewise `sizes`."""
    sizes: dict[str, int]
    """Samples by "width×height"."""
    ranges: dict[str, Range]
    """Of frames, seconds, frames_per_second and kib, over the samples."""
    variable_rate: int
    """Samples whose frame rate varies."""
    rotated: int
    """Samples that a viewer must turn or mirror; `stretched`: whose pixels are not square."""
    stretched: int
    bad: list[dict[str, str]]
    """shard, key and reason of each sample that cannot be used."""


@dataclasses.dataclass
class Sample:
    """One sample of a split or a shard."""

    info: SampleInfo
    """As the index has it, its sha256 included."""
    class_name: str
    """"" = unlabelled, or there are no names."""
    members: dict[str, tuple[int, int]]
    """Extension to (offset, size) in the shard, in bytes."""
    meta: dict[str, Any]
    """What its JSON member says."""
    faults: list[str]
    """What is wrong with it."""
    video: bytes
    """The encoded video; b"" = it cannot be found."""


def summarise(path: str | os.PathLike[str]) -> Summary:
    """Describe the samples of a split (from its index), or of one shard (by reading it).

    Args:
        path: folder of the split or its address, or a shard of this machine.

    Raises:
        DataError: there are no shards.
    """
    columns, bad, names = _columns(path)
    picture_sizes = [f"{w}×{h}" for w, h in zip(columns["width"], columns["height"], strict=True)]
    spread = {
        "frames": columns["frames"],
        "seconds": columns["duration_seconds"],
        "frames_per_second": columns["fps"],
        "kib": np.array(columns["size"]) / 1024,
    }
    return Summary(
        path=os.fspath(path),
        shards=len({*columns["shard"], *(row.shard for row in bad)}),
        samples=len(picture_sizes),
        frames=sum(columns["frames"]),
        bytes=sum(columns["size"]),
        seconds=float(sum(columns["duration_seconds"])),
        classes=_class_counts(columns["label"], names),
        codecs=dict(Counter(columns["codec"]).most_common()),
        sizes=dict(Counter(picture_sizes).most_common()),
        ranges={name: _range(values) for name, values in spread.items()} if picture_sizes else {},
        variable_rate=sum(columns["variable_rate"]),
        rotated=sum(map(any, zip(columns["rotation"], columns["mirror"], strict=True))),
        stretched=sum(aspect != 1 for aspect in columns["aspect"]),
        bad=[{"shard": row.shard, "key": row.key, "reason": row.error} for row in bad],
    )


def find_sample(path: str | os.PathLike[str], key: str) -> Sample:
    """Read one sample of a split's folder or of a shard, good or bad.

    Of a split at an address, only the video is read, not what lies beside it in the shard.

    Raises:
        DataError: there is no such sample; the message names those with similar keys.
    """
    if is_address(path):
        return _remote_sample(path, key)
    path = Path(path)
    info, names = _find(path, key)
    shard = path / info.shard if path.is_dir() else path
    entry = next((entry for entry in check_tar(shard, names)[0] if entry.key == key), None)
    members = entry.members if entry else {}
    faults = [*(entry.faults if entry else ()), *([info.error] if info.error else ())]
    video = b""
    if entry and entry.field and members[entry.field][1] <= LARGEST_VIDEO:
        video = _read(shard, *members[entry.field])
        extension = entry.field.rpartition(".")[2]
        info = info._replace(sha256=hashlib.sha256(video).hexdigest(), extension=extension)
    return Sample(
        info=info,
        class_name=names[info.label] if names and 0 <= info.label < len(names) else "",
        members=members,
        meta=_meta(shard, members),
        faults=list(dict.fromkeys(faults)),
        video=video,
    )


def _remote_sample(path: str | os.PathLike[str], key: str) -> Sample:
    index = ShardIndex.open(path, details=True)
    info = _row_of(index, path, key)
    video = b"" if info.error else index.read(index.keys.index(key))
    if video:
        info = info._replace(sha256=hashlib.sha256(video).hexdigest())
    name = index.classes[info.label] if 0 <= info.label < len(index.classes) else ""
    return Sample(info, name, {}, {}, [info.error] if info.error else [], video)


def _columns(
    path: str | os.PathLike[str],
) -> tuple[dict[str, list], list[SampleInfo], list[str] | None]:
    """Columns of the good samples, rows of the bad ones, and the names of the classes."""
    if is_address(path):
        index = ShardIndex.open(path)
        return index.columns(_COLUMNS), index.bad, index.classes
    path = Path(path)
    names = read_classes(path if path.is_dir() else path.parent)
    if path.is_dir():
        index = ShardIndex.open(path)
        return index.columns(_COLUMNS), index.bad, names
    rows = _scan(path, names)
    good = [row for row in rows if not row.error]
    columns = {name: [getattr(row, name) for row in good] for name in _COLUMNS}
    return columns, [row for row in rows if row.error], names


def _scan(path: Path, names: list[str] | None) -> list[SampleInfo]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such folder or shard")
    return scan_shard(path, names)


def _find(path: Path, key: str) -> tuple[SampleInfo, list[str] | None]:
    names = read_classes(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _row_of(ShardIndex.open(path, details=True), path, key), names
    rows = _scan(path, names)
    for row in rows:
        if row.key == key and key:
            return row, names
    raise _no_sample(path, key, [row.key for row in rows if not row.error])


def _row_of(index: ShardIndex, path: str | os.PathLike[str], key: str) -> SampleInfo:
    keys = index.keys
    if len(places := [place for place, name in enumerate(keys) if name == key]) > 1:
        found = ", ".join(index.row(place).shard for place in places[:5])
        raise DataError(
            f"{path}: {len(places)} samples have the key {key!r}: name the shard, {found}"
        )
    if places:
        return index.row(places[0])
    for row in index.bad:
        if row.key == key and key:
            return row
    raise _no_sample(path, key, keys)


def _no_sample(path: str | os.PathLike[str], key: str, keys: list[str]) -> DataError:
    similar = difflib.get_close_matches(key, keys, 5, 0.5) or keys[:5]
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    return DataError(f"{path}: there is no sample {key!r}{hint}")


def _read(shard: Path, offset: int, size: int) -> bytes:
    with open(shard, "rb") as file:
        return os.pread(file.fileno(), size, offset)


def _meta(shard: Path, members: Members) -> dict[str, Any]:
    """What the JSON member says, if it can be shown."""
    offset, size = members.get("json", (0, 0))
    try:
        meta = json.loads(_read(shard, offset, size)) if size <= LARGEST_TEXT else {}
        json.dumps(meta, indent=1)  # nests deeper in calls than reading it does
    except (ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _class_counts(labels: list[int], names: list[str] | None) -> dict[str, int]:
    counts = Counter(labels)
    top = max(counts, default=-1) + 1
    listed = names if names is not None else [str(label) for label in range(top)]
    found = {name: counts[label] for label, name in enumerate(listed)}
    return found | ({"unlabelled": counts[-1]} if counts[-1] else {})


def _range(values: Any) -> Range:
    return Range(float(np.min(values)), float(np.median(values)), float(np.max(values)))
