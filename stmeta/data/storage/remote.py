"""A split at an address: bytes of its shards, from a disk cache or from there, tried repeatedly."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import random
import time
from typing import Any

from stmeta._errors import DataError
from stmeta._util.cache_folder import cache_folder
from stmeta._util.machine_errors import StorageError
from stmeta._util.timers import Timers
from stmeta.data.storage.config import StorageConfig
from stmeta.data.storage.disk_cache import DiskCache
from stmeta.data.storage.fsspec_transport import FsspecTransport
from stmeta.data.storage.http_transport import HttpTransport
from stmeta.data.storage.transport import (
    NotFound,
    PermanentError,
    TransientError,
    Transport,
    without_password,
)

_REQUEST = 8 * 2**20  # bytes of one request at most
_LONGEST_WAIT = 30.0
_LARGEST_FILE = 2**31  # of those that are read as a whole
_log = logging.getLogger("stmeta.data")


def open_transport(url: str, timeout: float) -> Transport:
    """Choose by the address; `timeout` is seconds of one request.

    Raises:
        BackendUnavailableError: fsspec needs another package for this address.
        ValueError: the address is not complete, or of a kind that fsspec does not know.
    """
    web_page = url.startswith(("http://", "https://"))
    return HttpTransport(url, timeout) if web_page else FsspecTransport(url, timeout)


class RemoteFolder:
    """Reads the shards of a split at an address; see `stmeta.data.storage.folder.Folder`.

    Pickles, for worker processes, which then read for themselves.

    Attributes:
        shards: name to [bytes, time of change], as the index has them; only these are read.
    """

    def __init__(self, url: str, config: StorageConfig) -> None:
        """Read below an address; nothing is requested yet.

        Raises:
            BackendUnavailableError: fsspec needs another package for this address.
            ValueError: the address is not valid.
        """
        if config.cache_gib and config.cache_dir is None:
            config = dataclasses.replace(config, cache_dir=cache_folder() / "shards")
        self.url, self.config = url, config
        self.shards: dict[str, list[int]] = {}
        self._start()

    def _start(self) -> None:
        config = self.config
        self._transport = open_transport(self.url, config.timeout_seconds)
        self._block = int(config.block_mib * 2**20)
        self._cache: DiskCache | None = None
        if config.cache_gib and config.cache_dir is not None:
            self._cache = DiskCache(config.cache_dir, int(config.cache_gib * 2**30))
        self._failed_at = -math.inf  # when a read used up its tries, if none succeeded since

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "config": self.config, "shards": self.shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    def __str__(self) -> str:
        return without_password(self.url)

    def fetch(self, name: str, *, above: bool = False, optional: bool = False) -> bytes | None:
        """Read a whole file; it does not go into the cache.

        Args:
            name: of the file.
            above: it lies in the folder above.
            optional: a file that may not be read counts as one that is not there.

        Returns:
            Its content; None = it is not there.

        Raises:
            StorageError: the place does not answer, or does not let us read.
        """
        address = self._transport.address(name, above=above)
        if address is None:
            return None
        timers = Timers()
        try:
            size = self._try(address, timers, self._transport.size, address)
            if size > _LARGEST_FILE:
                raise DataError(f"{without_password(address)}: {size} bytes are too many")
            return self._get(address, 0, size, size, timers)
        except NotFound:
            return None
        except PermanentError as error:
            if optional:
                return None
            raise self._refusal(address, error) from error

    def read(self, shard: str, offset: int, size: int, timers: Timers) -> bytes:
        """See `stmeta.data.storage.folder.Folder`."""
        if shard not in self.shards:
            raise DataError("the index has no such shard")
        length = self.shards[shard][0]
        if offset < 0 or size < 0 or offset + size > length:
            raise DataError("the shard ends inside this sample")
        address = self._transport.address(shard)
        assert address is not None
        try:
            if self._cache is None or not size:
                return self._get(address, offset, offset + size, length, timers)
            blocks = range(offset // self._block, (offset + size - 1) // self._block + 1)
            parts = [
                self._from_block(self._cache, shard, address, number, offset, size, timers)
                for number in blocks
            ]
            return b"".join(parts)
        except NotFound as error:
            raise DataError(f"cannot be read: {without_password(address)}: {error}") from error
        except PermanentError as error:
            raise self._refusal(address, error) from error

    def _from_block(
        self,
        cache: DiskCache,
        shard: str,
        address: str,
        number: int,
        offset: int,
        size: int,
        timers: Timers,
    ) -> bytes:
        """What block `number` of a shard has of the bytes from `offset`."""
        stamp = self.shards[shard]
        first, last = number * self._block, min((number + 1) * self._block, stamp[0])
        begin, end = max(offset, first), min(offset + size, last)
        # A data set that was made again at the same address must not be mixed with the old one.
        text = f"{self} {shard} {stamp} {self._block} {number}"
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        part = cache.read(name, last - first, begin - first, end - first)
        if part is None and not cache.writable:
            timers.add("disk_miss", 1)
            return self._get(address, begin, end, stamp[0], timers)
        if part is None:
            # Clips next to each other share a block, and several threads or processes want it.
            with cache.alone(name, self.config.timeout_seconds):
                part = cache.read(name, last - first, begin - first, end - first)
                if part is None:
                    content = self._get(address, first, last, stamp[0], timers)
                    cache.write(name, content)
                    timers.add("disk_miss", 1)
                    return content[begin - first : end - first]
        timers.add("disk_hit", 1)
        return part

    def _get(self, address: str, begin: int, end: int, length: int, timers: Timers) -> bytes:
        """Bytes of a file, request by request."""
        parts = []
        for first in range(begin, end, _REQUEST):
            last = min(first + _REQUEST, end)
            get = self._transport.get
            parts.append(self._try(address, timers, get, address, first, last, length))
            timers.add("bytes", last - first)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _try(self, address: str, timers: Timers, request: Any, *arguments: Any) -> Any:
        """Make a request until it is answered, `tries` times at most."""
        began = time.monotonic()
        for number in range(1, self.config.tries + 1):
            tried = time.monotonic()
            try:
                answer = request(*arguments)
                self._failed_at = -math.inf
                return answer
            except TransientError as error:
                # Reads at the same time, or queued behind one that gave up, do not repeat its wait.
                given_up = self._failed_at + self.config.timeout_seconds > began
                if number == self.config.tries or given_up:
                    self._failed_at = time.monotonic()
                    timers.add("retry_seconds", time.monotonic() - tried)
                    raise self._failure(address, error, number, time.monotonic() - began) from error
                wait = min(self.config.backoff_seconds * 2 ** (number - 1), _LONGEST_WAIT)
                wait = max(wait * random.uniform(0.5, 1.5), min(error.retry_after, _LONGEST_WAIT))
                _log.info("%s: %s; next try in %.1f s", without_password(address), error, wait)
            time.sleep(wait)
            timers.add("retry", 1)
            timers.add("retry_seconds", time.monotonic() - tried)
        raise AssertionError("not reached")

    def _failure(
        self, address: str, error: TransientError, tries: int, seconds: float
    ) -> StorageError:
        return StorageError(
            f"{without_password(address)}: cannot be read: {error} ({tries} tries in "
            f"{seconds:.1f} s); check that it can be reached, or raise tries "
            f"({self.config.tries}) or timeout_seconds ({self.config.timeout_seconds:g})"
        )

    def _refusal(self, address: str, error: PermanentError) -> StorageError:
        hint = "check the address and who may read it; if shards changed, run `stmeta index` there"
        return StorageError(f"{without_password(address)}: {error}; {hint}")
