"""Checks a shard's structure strictly; the index's own reader is lenient.

Reading a shard skips what it does not know, so that other people's shards can be used. Here the
same things are faults: a header that cannot be read, members of one sample that lie apart, names
that lead elsewhere, a missing label or frame count.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta.data.tarscan import EXTENSIONS, LARGEST_VIDEO, Members, read_label

_LARGEST_OTHER = 2**26  # labels, JSON, an audio track; more is no companion of a clip
_BLOCK = tarfile.BLOCKSIZE
# Notes that webdataset itself leaves out, such as `__meta__/...`.
_META = re.compile(r"__[^/]*__($|/)")
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


class TarSample(NamedTuple):
    """One sample of a shard.

    Attributes:
        key: name in the tar, up to the first dot.
        members: extension to (offset, size) in bytes.
        extension: of the video; "" = there is not exactly one.
        label: position in classes.json; -1 = unlabelled or not readable.
        frames: what .nframes says; -1 = nothing that can be read.
        faults: what is wrong, in the order in which it was found.
    """

    key: str
    members: Members
    extension: str
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
    faults: list[str] = []
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return [], ["it is gzip-compressed; decompress it, as frames are read by offset"]
            entries = _entries(path, file.fileno(), faults)
            samples = [_sample(entry, file.fileno(), classes) for entry in entries]
    except FileNotFoundError:
        return [], ["the shard is missing"]
    except OSError as error:
        return [], [f"cannot be read: {error.strerror or error}"]
    if not samples and not faults:
        faults.append("the shard has no samples")
    return samples, faults


@dataclasses.dataclass
class _Entry:
    key: str
    members: Members = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)


def _entries(path: Path, fd: int, faults: list[str]) -> list[_Entry]:
    """Members by sample; what belongs to no sample is added to `faults`."""
    entries: dict[str, _Entry] = {}
    size, end, last = os.fstat(fd).st_size, 0, ""
    try:
        # ignore_zeros: shards that were concatenated have blocks of zeros between their parts.
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in tar:
                faults += _gap(fd, end, member.offset)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                key, extension, fault = _name(member)
                if not key:
                    faults += [fault] if fault else []
                    continue
                known = key in entries
                entry = entries.setdefault(key, _Entry(key))
                entry.faults += [fault] if fault else []
                if known and key != last:
                    entry.faults.append("its members do not lie next to each other in the shard")
                last = key
                _add(entry, member, extension, size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        cut = any("ends inside" in fault for entry in entries.values() for fault in entry.faults)
        if not cut:  # otherwise the sample that is cut says so itself
            faults.append(f"damaged after {len(entries)} samples: {error}")
        return list(entries.values())
    faults += _end(fd, end, size, found=bool(entries))
    return list(entries.values())


def _name(member: tarfile.TarInfo) -> tuple[str, str, str]:
    """Key, extension and fault of a member; without a key it belongs to no sample."""
    name = member.name.removeprefix("./")
    if member.isdir() or _META.match(name):
        return "", "", ""
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        fault = f"the name {member.name[:80]!r} leads out of the folder"
    elif not stem or not dot:
        return "", "", f"the member {member.name[:80]!r} belongs to no sample"
    elif not _KEY.fullmatch(key):
        fault = f"the key {key[:80]!r} may only have letters, digits, '_' and '-'"
    else:
        fault = ""
    return key or name, extension.rpartition(".")[2].lower(), fault


def _add(entry: _Entry, member: tarfile.TarInfo, extension: str, size: int) -> None:
    limit = LARGEST_VIDEO if extension in EXTENSIONS else _LARGEST_OTHER
    if not member.isreg() or member.issparse():
        entry.faults.append(f"{extension} is a link, a device or a sparse file, not plain content")
    elif extension in entry.members:
        entry.faults.append(f"{extension} occurs more than once")
    elif member.size < 0 or member.offset_data + member.size > size:
        entry.faults.append(f"the shard ends inside this sample's {extension}")
    elif member.size > limit:
        entry.faults.append(f"{extension} has {member.size} bytes; at most {limit} are read")
    else:
        entry.members[extension] = (member.offset_data, member.size)


def _gap(fd: int, begin: int, end: int) -> list[str]:
    """What lies between two members must be zeros or a header that concerns the whole tar."""
    at = begin
    while at < end:
        block = os.pread(fd, _BLOCK, at)
        if any(block):
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError:
                return [f"damaged: no header at byte {at}, {end - at} bytes were skipped"]
            if header.type != tarfile.XGLTYPE:
                return [f"damaged: the member at byte {at} cannot be read"]
            at += -(-header.size // _BLOCK) * _BLOCK
        at += _BLOCK
    return []


def _end(fd: int, begin: int, size: int, *, found: bool) -> list[str]:
    """After the last member come two blocks of zeros, and nothing else."""
    for at in range(begin, size, 2**20):
        if os.pread(fd, 2**20, at).strip(b"\0"):
            where = f"after byte {at}" if found else "at its start"
            return [f"damaged, or not a tar: no header {where}"]
    if size - begin < 2 * _BLOCK or size % _BLOCK:
        return ["its end mark is missing: cut, or not finished when written"]
    return []


def _sample(entry: _Entry, fd: int, classes: Sequence[str] | None) -> TarSample:
    videos = [extension for extension in entry.members if extension in EXTENSIONS]
    extension = videos[0] if len(videos) == 1 else ""
    # A sample that is cut, linked or scattered is not asked for the members that it lost.
    if not entry.faults and not extension:
        found = ", ".join(entry.members) or "nothing"
        entry.faults.append(f"needs one of {', '.join(EXTENSIONS)}; found {found}")
    if not entry.faults:
        if entry.members[extension][1] == 0:
            entry.faults.append(f"{extension} is empty (0 bytes)")
        for check in (_json_faults, _label_faults, _frames_faults):
            entry.faults += check(entry, fd, classes)
    label, frames = -1, -1
    if not entry.faults:
        label, frames = read_label(entry.members, fd, classes), _frames(entry, fd)
    return TarSample(entry.key, entry.members, extension, label, frames, entry.faults)


def _read(entry: _Entry, fd: int, extension: str) -> bytes:
    offset, size = entry.members[extension]
    return os.pread(fd, size, offset)


def _json(entry: _Entry, fd: int) -> dict | None:
    try:
        record = json.loads(_read(entry, fd, "json"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _json_faults(entry: _Entry, fd: int, _: Sequence[str] | None) -> Iterator[str]:
    if "json" in entry.members and _json(entry, fd) is None:
        yield "json is not a JSON object"


def _label_faults(entry: _Entry, fd: int, classes: Sequence[str] | None) -> Iterator[str]:
    in_json = "json" in entry.members and "label" in (_json(entry, fd) or {})
    if "cls" not in entry.members and not in_json:
        yield "the label is missing: there is no .cls, and no label in .json"
        return
    try:
        read_label(entry.members, fd, classes)
    except DataError as error:
        yield str(error)


def _frames_faults(entry: _Entry, fd: int, _: Sequence[str] | None) -> Iterator[str]:
    if "nframes" not in entry.members:
        yield "nframes is missing"
    elif entry.members["nframes"][1] != 4:
        yield f"nframes has {entry.members['nframes'][1]} bytes; it is a little-endian int32"
    elif _frames(entry, fd) < 1:
        yield f"nframes says {_frames(entry, fd)} frames"


def _frames(entry: _Entry, fd: int) -> int:
    return struct.unpack("<i", _read(entry, fd, "nframes"))[0]
