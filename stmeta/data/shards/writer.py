"""Shards of encoded videos: plain tars that webdataset and DALI read too, and their index.

A split is a folder of `000000.tar`, `000001.tar`, ..., one `.idx` (DALI's) beside each, and one
`index.parquet`. The folder above it holds `classes.json`, a list of names; label i is the i-th.

A sample is four members of a tar, next to each other, the video first:

    {key}.mp4      the encoded video (or .webm, .avi, .mkv, .mov)
    {key}.cls      the label, an ASCII integer; -1 = unlabelled
    {key}.nframes  the number of frames, little-endian int32
    {key}.json     source, size, frame rate, label text, ...

Every file is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stmeta._errors import DataError
from stmeta.data.shards.classes import read_classes, write_classes
from stmeta.data.shards.index import (
    EXTENSIONS,
    SampleInfo,
    ShardIndex,
    build_index,
)
from stmeta.data.video.probe import VideoInfo, probe

__all__ = [
    "EncodedSample",
    "KeyMaker",
    "SampleInfo",
    "ShardIndex",
    "ShardWriter",
    "build_index",
    "read_classes",
    "write_classes",
    "write_shard",
    "write_shards",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One encoded video on its way into a shard."""

    key: str
    """Name of the sample; letters other than A-Z a-z 0-9 _ - are replaced by "_"."""
    video: bytes
    """The file's content, as an encoder wrote it."""
    extension: str
    """Ending of its name, without a dot; see `stmeta.data.video.containers.EXTENSIONS`."""
    label: int = -1
    """Position in classes.json; -1 = unlabelled."""
    label_text: str = ""
    """Name of the class, or any text; for people."""
    source: str = ""
    """Where the video came from, such as its path in the source folder."""
    info: VideoInfo | None = None
    """What `probe` says about `video`; None = probed when it is written."""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More entries for the JSON member."""


class KeyMaker:
    """Turns names into keys of letters, digits, "_" and "-", never the same key twice.

    DALI's index splits at the first dot and at spaces, so neither may be in a key. A key that was
    given out already gets "-2", "-3", ...: the same names in the same order give the same keys.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the key for a name."""
        base = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80] or "_"
        key, number = base, 1
        while key in self._given:
            number += 1
            key = f"{base}-{number}"
        self._given.add(key)
        return key


def write_shards(
    samples: Iterable[EncodedSample],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    shard_mib: float = 64,
    check: bool = True,
) -> ShardIndex:
    """Write samples to the shards of a new split and index them.

    Args:
        samples: in the order in which they are to lie; only one is held in memory.
        out: folder of the split; must hold no shards yet.
        classes: names for `out/../classes.json`; None = leave that file alone.
        shard_mib: a shard is closed once its videos pass this many MiB.
        check: refuse a video that `probe` finds broken. False writes it as it is, with 0 frames;
            the index lists it as bad.

    Returns:
        The index of the split.

    Raises:
        DataError: `out` has shards already, or a video is broken (`check`).
        ValueError: a sample's extension or label is not valid.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.tar")):
        raise DataError(f"write_shards: {out} holds shards already; choose another folder")
    if classes is not None:
        write_classes(out.parent, classes)
    for number, part in enumerate(_parts(samples, classes, check, shard_mib * 2**20)):
        write_shard(out / f"{number:06d}.tar", part)
    return build_index(out)


def _parts(
    samples: Iterable[EncodedSample], classes: Sequence[str] | None, check: bool, limit: float
) -> Iterator[Iterator[EncodedSample]]:
    """Checked samples, shard by shard; each inner iterator must be used up before the next."""
    keys, stream = KeyMaker(), iter(samples)

    def part(sample: EncodedSample | None) -> Iterator[EncodedSample]:
        size = 0
        while sample is not None:
            yield _checked(dataclasses.replace(sample, key=keys(sample.key)), classes, check)
            size += len(sample.video)
            sample = next(stream, None) if size < limit else None

    while (first := next(stream, None)) is not None:
        yield part(first)


def write_shard(path: str | os.PathLike[str], samples: Iterable[EncodedSample]) -> None:
    """Write one shard and its `.idx`; either both are complete or the shard is not there.

    Args:
        path: the tar; its folder exists.
        samples: with keys as `KeyMaker` gives them and `info` filled in.
    """
    writer = ShardWriter(Path(path))
    try:
        for sample in samples:
            writer.add(sample)
    except BaseException:
        writer.abort()
        raise
    writer.close()


def _checked(sample: EncodedSample, classes: Sequence[str] | None, check: bool) -> EncodedSample:
    if sample.extension not in EXTENSIONS:
        raise ValueError(
            f"write_shards: extension must be one of {', '.join(EXTENSIONS)}, got "
            f"{sample.extension!r} for {sample.key!r}; convert the video, or name its container"
        )
    if sample.label < -1 or (classes is not None and sample.label >= len(classes)):
        raise ValueError(
            f"write_shards: label must be -1 or below {len(classes or [])} = len(classes), got "
            f"{sample.label} for {sample.key!r}"
        )
    if sample.info is not None:
        return sample
    try:
        return dataclasses.replace(sample, info=probe(sample.video))
    except DataError as error:
        if check:
            raise DataError(f"write_shards: {sample.key!r}: {error}") from error
        return sample


class ShardWriter:
    """Writes a tar whose bytes depend on the samples alone, and its DALI index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".tmp")
        self.file = open(self.partial, "wb")
        self.tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)
        self.lines: list[str] = []

    def add(self, sample: EncodedSample) -> None:
        """Append the members of one sample."""
        frames = sample.info.frames if sample.info else 0
        members = {
            sample.extension: sample.video,
            "cls": str(sample.label).encode(),
            "nframes": struct.pack("<i", frames),
            "json": _description(sample),
        }
        parts = []
        for extension, content in members.items():
            entry = tarfile.TarInfo(f"{sample.key}.{extension}")
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            self.tar.addfile(entry, io.BytesIO(content))
            end = self.file.tell()
            begin = end - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            parts.append(f"{extension} {begin} {len(content)} {entry.name}")
        self.lines.append(" ".join(parts))

    def close(self) -> int:
        """Finish both files and give them their names, the tar last; return the tar's bytes.

        Raises:
            OSError: there is no room, for example; nothing is left behind.
        """
        index = self.path.with_suffix(".idx")
        partial = index.with_name(index.name + ".tmp")
        try:
            self.tar.close()
            self.file.flush()
            size = self.file.tell()
            os.fsync(self.file.fileno())
            self.file.close()
            with open(partial, "w") as file:
                file.write("\n".join([f"v1.2 {len(self.lines)}", *self.lines]) + "\n")
            os.replace(partial, index)
            os.replace(self.partial, self.path)
        except BaseException:
            self.abort()
            for path in (partial, index):
                path.unlink(missing_ok=True)
            raise
        return size

    def abort(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # what is still in memory finds no room either
            self.file.close()
        self.partial.unlink(missing_ok=True)


def _description(sample: EncodedSample) -> bytes:
    record: dict[str, Any] = {
        "source": sample.source,
        "label": sample.label,
        "label_text": sample.label_text,
    }
    if sample.info is not None:
        record |= sample.info._asdict()
        del record["keyframes"]  # long, and in index.parquet
    return json.dumps(record | dict(sample.meta), ensure_ascii=False).encode("utf-8", "replace")
