"""Reads the headers of a tar with limits of its own, whatever they claim; nothing is extracted.

Python's `tarfile` believes a header: a negative size leads backwards for ever, a claimed one is
read into memory, a chain of long names ends in a recursion. Here every size is compared with the
file first and every step goes forward. What is no header is passed over to the next one, and told.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = tarfile.BLOCKSIZE
_LARGEST_EXTENSION = 2**20  # bytes of PAX records, or of a GNU long name
_MOST_EXTENSIONS = 16  # headers that only say something about the next one
_LONGEST_NAME = 4096
# Shards that were concatenated have the end marks of the first between them, padded to a record.
_LONGEST_ZEROS = 2**16
_EXTENDING = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_NO_CONTENT = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
)
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=", re.DOTALL)


class Member(NamedTuple):
    """An entry of a tar.

    Attributes:
        name: as it is written; bytes that are not UTF-8 are surrogates.
        kind: type in its header, one byte.
        offset: bytes from the start of the tar to its content.
        size: bytes of it; 0 = it has none, or a fault.
        plain: whether it is a file with content, not a link, a device or a sparse file.
        fault: why it cannot be read; "" = it can.
        checksummed: whether a checksum protects its name; in an extension header none does.
    """

    name: str
    kind: bytes
    offset: int
    size: int
    plain: bool
    fault: str
    checksummed: bool

    @property
    def special(self) -> bool:
        """Whether it is a device, a pipe or of a type that is not known: nobody's content."""
        return self.kind not in (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE, tarfile.SYMTYPE)


class Gap(NamedTuple):
    """Bytes of a tar that belong to no entry.

    Attributes:
        begin: first byte.
        end: byte after the last; the size of the file = no entry follows.
        reason: what is wrong there; "" = zeros, as between shards that were concatenated, or at
            the end.
    """

    begin: int
    end: int
    reason: str


class _Damage(Exception):
    """There is no header, or none that can be believed."""


def read_tar(fd: int, size: int) -> Iterator[Member | Gap]:
    """Yield the entries of a tar and the gaps between them, in file order.

    Args:
        fd: the open file.
        size: its bytes.
    """
    at, hidden = 0, False
    while at < size:
        zeros = _zeros_end(fd, at, size)
        if zeros > at:
            yield Gap(at, zeros, _zeros_fault(at, zeros, size))
            at = zeros
            continue
        try:
            walk = _Walk(fd, size, at)
            member, end = _member(walk)
        except _Damage as damage:
            # Not from the first again: a chain of them would be walked from each of its headers.
            end = _next_header(fd, max(walk.at, at + BLOCK), size)
            yield Gap(at, end, str(damage))
            hidden = _extends(fd, at)
        else:
            if hidden and not member.fault:  # its name or size may have been in what was damaged
                member = member._replace(fault="has a damaged extension header before it", size=0)
            yield member
            hidden = False
        assert end > at
        at = end


@dataclasses.dataclass
class _Walk:
    """How far the headers of an entry were read."""

    fd: int
    size: int
    at: int


def _member(walk: _Walk) -> tuple[Member, int]:
    """The entry that begins at a byte, with the headers that extend it; and where it ends."""
    fd, size = walk.fd, walk.size
    name, records, extensions = b"", {}, 0
    while True:
        header = _header(fd, walk.at)
        walk.at += BLOCK
        if header.type not in _EXTENDING:
            break
        if not 0 <= header.size <= min(_LARGEST_EXTENSION, size - walk.at):
            raise _Damage(f"an extension header claims {header.size} bytes")
        content = os.pread(fd, header.size, walk.at)
        extensions += 1
        if header.type == tarfile.GNUTYPE_LONGNAME:
            name = content.partition(b"\0")[0]
        elif header.type == tarfile.XGLTYPE:
            if {b"path", b"size"} & _pax(content).keys():
                raise _Damage("a global header gives all members one name or size")
        elif header.type != tarfile.GNUTYPE_LONGLINK:
            records |= _pax(content)
        walk.at += _padded(header.size)
    at = walk.at
    name = records.get(b"GNU.sparse.name") or records.get(b"path") or name
    checksummed = not name
    name = name or header.name.encode("utf-8", "surrogateescape")
    sparse = header.type == tarfile.GNUTYPE_SPARSE or any(b"GNU.sparse" in key for key in records)
    if header.type == tarfile.GNUTYPE_SPARSE:
        at = _after_map(fd, at, size)
    length = _length(header, records)
    fault = ""
    if extensions > _MOST_EXTENSIONS:
        fault = f"has {extensions} extension headers"
    elif len(name) > _LONGEST_NAME:
        fault = f"has a name of {len(name)} bytes"
    elif header.type in _NO_CONTENT:
        length = 0
    elif length < 0:
        fault = f"claims a size of {length} bytes"
    elif length > size - at:
        fault = "is cut: the shard ends inside it"
    shown = name[:_LONGEST_NAME].decode("utf-8", "surrogateescape")
    plain = header.type in tarfile.REGULAR_TYPES and not sparse
    member = Member(shown, header.type, at, 0 if fault else length, plain, fault, checksummed)
    # The content of one that cannot be believed is passed over like any damage.
    return member, at if fault else at + _padded(length)


def _header(fd: int, at: int) -> tarfile.TarInfo:
    block = os.pread(fd, BLOCK, at)
    if len(block) < BLOCK:
        raise _Damage("the shard ends inside a header")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError):
        raise _Damage("there is no header") from None


def _extends(fd: int, at: int) -> bool:
    """Whether the header at a byte says something about the next one alone."""
    try:
        return _header(fd, at).type in {*_EXTENDING} - {tarfile.XGLTYPE}
    except _Damage:
        return False


def _length(header: tarfile.TarInfo, records: dict[bytes, bytes]) -> int:
    """Bytes of content: the PAX record's where there is one (-1 = that is no size)."""
    text = records.get(b"size")
    if text is None:
        return header.size
    if not re.fullmatch(rb"-?[0-9]{1,18}", text):
        return -1
    return int(text)


def _pax(content: bytes) -> dict[bytes, bytes]:
    """Lines of LENGTH KEY=VALUE, where LENGTH counts all of a line (POSIX.1-2001, pax)."""
    records, at = {}, 0
    while at < len(content) and content[at] != 0:
        # Not the whole of it: 200 kB of digits would be read again from each of them.
        found = _RECORD.match(content, at, at + 256)
        end = at + int(found[1]) if found else -1
        if found is None or not found.end() < end <= len(content) or content[end - 1] != 10:
            raise _Damage("an extension header has PAX records that cannot be read")
        records[found[2]] = content[found.end() : end - 1]
        at = end
    return records


def _after_map(fd: int, at: int, size: int) -> int:
    """Where the content of an old GNU sparse file begins: its map may take more blocks."""
    more = os.pread(fd, BLOCK, at - BLOCK)[482]
    while more and at + BLOCK <= size:
        more = os.pread(fd, BLOCK, at)[504]
        at += BLOCK
    return at


def _zeros_end(fd: int, at: int, size: int) -> int:
    """Where the blocks of zeros that begin at a byte end."""
    step = BLOCK
    while at < size:
        content = os.pread(fd, min(step, size - at), at)
        zeros = len(content) - len(content.lstrip(b"\0"))
        if zeros < len(content) or not content:
            return at + zeros // BLOCK * BLOCK
        at += zeros
        step = min(2 * step, 2**20)
    return size


def _zeros_fault(begin: int, end: int, size: int) -> str:
    if end - begin > _LONGEST_ZEROS:
        return f"{end - begin} bytes are zeros: not written, or lost"
    if end < size and end - begin < 2 * BLOCK:
        return "one block is zeros"
    return ""


def _next_header(fd: int, at: int, size: int) -> int:
    """The next byte, a whole number of blocks on, at which a header is; the end if there is none.

    Blocks are looked at by the thousand, as there may be a whole video to pass over; fewer at
    first, as there may be many short gaps.
    """
    step = 8 * BLOCK
    while at + BLOCK <= size:
        content = os.pread(fd, step, at)
        blocks = np.frombuffer(content, np.uint8, len(content) // BLOCK * BLOCK)
        blocks = blocks.reshape(-1, BLOCK)
        if not len(blocks):
            break
        digits = blocks[:, 148:154]  # the checksum: octal digits, maybe after spaces
        likely = (((digits >= 48) & (digits < 56)) | (digits == 32) | (digits == 0)).all(1)
        for place in np.flatnonzero(likely & blocks.any(1)).tolist():
            try:
                _header(fd, at + place * BLOCK)
            except _Damage:
                continue
            return at + place * BLOCK
        at += len(blocks) * BLOCK
        step = min(2 * step, 2**20)
    return size


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
