"""Files that are written whole or not at all, and read only where they are files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from stmeta._errors import DataError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give another name to write to; it becomes `path` at the end, or goes away on an error."""
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the name with no content
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> int:
    """Open a file for reading and return its descriptor; never waits, as a named pipe would.

    Args:
        path: of the file.
        follow: take what a symbolic link points to; False refuses links.

    Raises:
        DataError: it is a pipe, a device, a folder or something else that holds no bytes.
        OSError: it is not there or may not be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{os.fspath(path)}: is no file, but a pipe, a device or a folder")
    return handle


def read_small(path: Path, limit: int = 1 << 24) -> bytes:
    """All of a file that people or programs wrote by hand.

    Raises:
        DataError: it is no file, or larger than `limit` bytes.
        OSError: it is not there or may not be read.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: is larger than {limit >> 20} MiB, which no such file is")
    return content
