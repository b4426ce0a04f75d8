"""Locks between processes and threads; each goes away with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between tries


def lock(file: int, seconds: float) -> bool:
    """Lock an open file or folder, also against others that opened it in this process.

    Tries again and again, because the system does not wait for a lock with a limit. Closing the
    file unlocks it.

    Args:
        file: its descriptor.
        seconds: to wait for it; 0 = one try.

    Returns:
        Whether it could be had.

    Raises:
        OSError: nothing can be locked here, as on some network file systems.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while not lock_descriptor(file, blocking=False):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Keep others out of a folder while the block runs, without a file in it.

    Where nothing can be locked, nobody is kept out.

    Yields:
        Whether nobody else is in there.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            free = lock(handle, 0)
        except OSError:
            free = True
        yield free
    finally:
        os.close(handle)
