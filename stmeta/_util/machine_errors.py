"""Which errors are the machine's, and so say nothing about the video or shard that was read.

A process that is out of file descriptors for a moment, or a full disk, must not leave a video on a
list of damaged ones: such errors are tried again, or stop what is done. Whoever turns an error into
a reason asks `raise_if_machines` first.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from stmeta._errors import DataError

_Result = TypeVar("_Result")

_BRIEF = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
_BRIEF |= {errno.EAGAIN, errno.ENOBUFS}
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A disk, a user's part of it, or what one file may hold, is full."""
_WAITS = (0.05, 0.2, 0.8, 2.0)  # seconds between tries
_ENOUGH = 64 << 20  # bytes: where so many can be had, it was the file that asked for too many


class StorageError(DataError):
    """The place of the shards, or this machine, fails, which says nothing about a sample.

    So no other sample takes the place of the one that was asked for: the run stops.

    Attributes:
        brief: whether it may be over in a moment.
    """

    brief = False


def raise_if_machines(
    error: BaseException, read: bytes | str | os.PathLike[str] | None = None
) -> None:
    """Turn an error of the machine into a StorageError; do nothing for one of the data.

    FFmpeg says "out of memory" and "I/O error" of damaged files too. Then memory, or the file, is
    asked for once more without it.

    Args:
        error: an OSError, MemoryError or FFmpeg's.
        read: the file that was read, or what it held.

    Raises:
        StorageError: it is the machine's.
    """
    if isinstance(error, StorageError):
        raise error
    path = None if isinstance(read, bytes) else read
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number not in _BRIEF | NO_ROOM:
        return
    if number == errno.ENOMEM and _has_memory():
        return
    if number == errno.EIO and _is_ffmpegs(error) and (path is None or _reads(path)):
        return
    where = getattr(error, "filename", None) or path or "this machine"
    fault = StorageError(
        f"{where}: {os.strerror(number)}; this says nothing about the videos, and none is marked "
        "as damaged: try again once it is over"
    )
    fault.brief = number in _BRIEF
    raise fault from error


def patiently(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call, and call again for some seconds where the machine fails in a way that may pass.

    Every read of a clip comes through here: a loop costs it 0.4 µs, tenacity 20.

    Raises:
        StorageError: it does not pass.
    """
    for wait in (*_WAITS, None):
        try:
            return function(*arguments)
        except (OSError, MemoryError, StorageError) as error:
            try:
                raise_if_machines(error)
            except StorageError as fault:
                if wait is None or not fault.brief:
                    raise
            else:
                raise
        time.sleep(wait)
    raise AssertionError("not reached")


def _is_ffmpegs(error: BaseException) -> bool:
    return type(error).__module__.startswith("av.")


def _has_memory() -> bool:
    try:
        mmap.mmap(-1, _ENOUGH).close()
    except (OSError, MemoryError):
        return False
    return True


def _reads(path: str | os.PathLike[str]) -> bool:
    """Whether all bytes of a file can be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError as error:
        return error.errno not in _BRIEF
    return True
