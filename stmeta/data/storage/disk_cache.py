"""A bounded cache of blocks in a folder, for several threads and processes at once.

A block is a file that is written under another name and renamed; the time of its last use is its
time of change. `used` holds the bytes of all blocks, kept under a lock and never too low: what a
killed process leaves is counted, and put right by the next look through the folder.

fsspec's own caches have no limit, and are not for several processes; a part of a block takes
0.07 ms here, 0.3 to 0.7 ms there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stmeta._errors import DataError
from stmeta._util.files import open_regular
from stmeta._util.locks import lock

_PATIENCE = 10.0  # seconds for the lock of `used`; a stopped process must not stop the others
_LEFTOVER = 3600.0  # a partial file this old belongs to nobody
_log = logging.getLogger("stmeta.data")


class DiskCache:
    """Keeps the blocks that were used last, up to `limit` bytes.

    Attributes:
        writable: False once the disk was full or could not be written to.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder, which is made with the first block."""
        self.folder, self.limit = Path(folder), limit
        self.writable = True
        self._lock = threading.Lock()

    def read(self, name: str, size: int, begin: int, end: int) -> bytes | None:
        """Bytes begin ... end - 1 of a block of `size` bytes; None = it is not here.

        Args:
            name: hexadecimal digits.
            size: bytes of the block; a file of another size does not count.
            begin: first byte.
            end: after the last byte.
        """
        try:
            file = open_regular(self._path(name), follow=False)
        except (OSError, DataError):
            return None
        try:
            if os.fstat(file).st_size != size:
                return None
            with contextlib.suppress(OSError):  # somebody else's cache can still be read
                os.utime(file)
            part = os.pread(file, end - begin, begin)
        except OSError:
            return None
        finally:
            os.close(file)
        return part if len(part) == end - begin else None

    def write(self, name: str, content: bytes) -> None:
        """Keep a block; what was not used for longest goes. Never fails: it warns, once."""
        if not self.writable or len(content) > self.limit:
            return
        path = self._path(name)
        partial = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._make_room(len(content)):
                return
            # A file of its own, whatever somebody put under that name.
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fdatasync(file.fileno())  # else a power cut could leave a name with no content
            os.replace(partial, path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # these may pass
                self._stop(error)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, name: str, seconds: float) -> Iterator[None]:
        """Keep other threads and processes from fetching the same block meanwhile.

        Gives up after `seconds`, or where files cannot be locked: then it is fetched twice.
        """
        with _locked(self.folder / "locks" / name[:2], seconds):
            yield

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _stop(self, error: OSError) -> None:
        with self._lock:
            if self.writable:
                self.writable = False
                _log.warning(
                    "%s: nothing more is kept in the disk cache: %s", self.folder, error.strerror
                )

    def _make_room(self, nbytes: int) -> bool:
        """Count a block that is about to come; False = there was no lock to be had."""
        with _locked(self.folder / "used", _PATIENCE) as file:
            if file is None:
                return False
            text = os.pread(file, 32, 0)
            used = int(text) if text.isdigit() else None
            if used is None or used + nbytes > self.limit:
                used = self._evict(min(self.limit - nbytes, self.limit * 9 // 10))
            if used + nbytes > self.limit:
                return False
            os.ftruncate(file, 0)
            os.pwrite(file, str(used + nbytes).encode(), 0)
            return True

    def _evict(self, target: int) -> int:
        """Delete the blocks that were not used for longest; returns the bytes that are left."""
        found, used, now = [], 0, time.time()
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):  # another process may delete it meanwhile
                info = path.lstat()
                used += info.st_size
                if path.suffix != ".tmp" or info.st_mtime < now - _LEFTOVER:
                    found.append((info.st_mtime_ns, info.st_size, path))
        for _, size, path in sorted(found):
            if used <= target:
                break
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()
            used -= size
        return used


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Iterator[int | None]:
    """Lock a file, also against other threads; gives its descriptor, None = it was not free."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link would be followed to a file that is not ours, a pipe has no place to write to.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError:
        yield None
        return
    try:
        yield file if _lock(file, seconds) else None
    finally:
        os.close(file)  # and with it the lock


def _lock(file: int, seconds: float) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file).st_mode) and lock(file, seconds)
    except OSError:
        return False
