"""The samples of a shard, put together from the entries of its tar, and what was lost beside them.

A sample is what has the same name up to the first dot; what follows is the field, as webdataset has
it: `ev.left.mp4` is the field `left.mp4` of the sample `ev`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from pathlib import Path

from stmeta._errors import DataError
from stmeta.data.shards.sample import Members, Sample
from stmeta.data.shards.tar_headers import BLOCK, Gap, Member, read_tar
from stmeta.data.shards.tar_losses import find_losses

LARGEST_VIDEO = 2**31  # bytes; more than this is no clip, and a reader would hold it in memory
LARGEST_TEXT = 2**20  # of a label or a description

RECORD = tarfile.RECORDSIZE
_LONGEST_END = RECORD + 2 * BLOCK  # two blocks of zeros, and what fills a record
# Notes that webdataset itself leaves out, such as `__meta__/...`.
_META = re.compile(r"__[^/]*__($|/)")


def read_samples(path: Path) -> tuple[list[Sample], list[str], list[str]]:
    """Read the headers of a shard.

    Args:
        path: the tar.

    Returns:
        The samples in file order, what is wrong with the shard as a whole, and names of entries
        that belong to no sample.

    Raises:
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")
    shard = _Shard()
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return [], ["it is gzip-compressed; decompress it, as frames are read by offset"], []
        size = os.fstat(file.fileno()).st_size
        for entry in read_tar(file.fileno(), size):
            if isinstance(entry, Gap):
                shard.add_gap(entry, size)
            else:
                shard.add(entry)
    faults, samples = shard.faults(size), list(shard.samples.values())
    find_losses(samples)
    return samples, faults, shard.strange


def text_of(members: Members, field: str, fd: int) -> str:
    """A small member as text.

    Raises:
        DataError: it is large.
    """
    offset, size = members[field]
    if size > LARGEST_TEXT:
        raise DataError(f"{field} has {size} bytes, which is no label")
    return os.pread(fd, size, offset).decode("utf-8", errors="replace").strip()


class _Shard:
    """Puts entries together as they come."""

    def __init__(self) -> None:
        self.samples: dict[str, Sample] = {}
        self.strange: list[str] = []
        self._gaps: list[Gap] = []
        self._notes: list[str] = []  # faults of entries that belong to no sample
        self._more = 0  # gaps that are not listed
        self._last: Sample | None = None
        self._gap: set[bool] = set()  # kinds of gaps since the last entry
        self._explained = False  # the last entry has a fault, so what follows it may be anything
        self._stray = False  # the last entry belongs to no sample
        self._ended = False  # the last thing read was zeros

    def add_gap(self, gap: Gap, size: int) -> None:
        damaged = bool(gap.reason)
        self._ended = not damaged or (self._explained and gap.end == size)
        # Zeros as `tar` writes them at the end, maybe of the first of several shards.
        usual = gap.end - gap.begin < _LONGEST_END if gap.end == size else gap.end % RECORD == 0
        if not damaged and usual:
            return
        self._gap.add(damaged)
        if self._last:
            self._last.beside.add(damaged)
        if damaged and not self._explained:
            if len(self._gaps) < 8:
                self._gaps.append(gap)
            else:
                self._more += 1

    def add(self, member: Member) -> None:
        name = member.name.removeprefix("./")
        folder, _, base = name.rpartition("/")
        stem, dot, field = base.partition(".")
        self._explained, self._ended = bool(member.fault), False
        if member.kind == tarfile.DIRTYPE or _META.match(name):
            return
        if not stem or not dot:
            self._stray = True
            if member.fault:
                self._notes = [*self._notes, f"an entry {member.fault}"][:8]
            if self._last:
                self._last.stray = True
            self.strange.append(name[:80].encode("utf-8", "replace").decode())
            return
        kinds, self._gap = self._gap, set()
        key = f"{folder}/{stem}" if folder else stem
        known = key in self.samples
        sample = self.samples.setdefault(key, Sample(key))
        if known and sample is not self._last:
            sample.scattered = True
        # Zeros inside of a sample are no end of a shard that others were appended to.
        sample.beside |= {True} if kinds and sample is self._last else kinds
        sample.stray, self._stray = sample.stray or self._stray, False
        sample.checksummed = sample.checksummed and member.checksummed
        self._last = sample
        _place(sample, member, field.lower())
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            sample.paths.append(name)

    def faults(self, size: int) -> list[str]:
        last = list(self.samples.values())[-1] if self.samples else None
        cut = last is not None and any("the shard ends inside" in fault for fault in last.faults)
        found = [
            f"damaged: {gap.end - gap.begin} bytes after byte {gap.begin} were passed over "
            f"({gap.reason})"
            for gap in self._gaps
        ]
        found += self._notes
        if not self.samples and self._gaps and self._gaps[0].begin == 0:
            found = [f"damaged, or not a tar: no header at its start ({self._gaps[0].reason})"]
        elif size == 0:
            found = ["damaged after 0 samples: the file is empty"]
        elif self._more:
            found.append(f"damaged in {self._more} more places")
        elif not self._ended and not cut and not found:
            found = ["its end mark is missing: cut, or not finished when written"]
            if last:
                last.beside.add(True)
        if not self.samples and not found:
            found = ["the shard has no samples"]
        return found


def _place(sample: Sample, member: Member, field: str) -> None:
    try:
        f"{sample.key}{field}".encode()
    except UnicodeEncodeError:
        sample.faults.append("its name is not UTF-8")
        return
    if re.search(r"[\x00-\x1f\x7f]", f"{sample.key}{field}"):
        sample.faults.append("its name has control characters")
    elif member.fault:
        sample.faults.append(f"{field} {member.fault}")
    elif member.special:
        sample.special.append(field)
    elif not member.plain:
        sample.faults.append(f"{field} is a link, a device or a sparse file, not a plain file")
    elif field in sample.members:
        sample.repeated.append(field)
    else:
        sample.members[field] = (member.offset, member.size)


def is_own(samples: list[Sample]) -> bool:
    """Whether this library wrote the shard: no other gives the number of frames."""
    return any("nframes" in sample.members for sample in samples)
