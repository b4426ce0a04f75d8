"""Where shards lie: in a local folder, or at an address. All of them are read through here.

A split's `root` is a `Path` or a `RemoteFolder`; `folder_of` gives what reads its shards.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from stmeta._errors import DataError
from stmeta._util.files import open_regular
from stmeta._util.machine_errors import StorageError as StorageError
from stmeta._util.machine_errors import patiently
from stmeta._util.timers import Timers
from stmeta.data.storage.config import StorageConfig

if TYPE_CHECKING:
    from stmeta.data.storage.remote import RemoteFolder

    Root = Path | RemoteFolder

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


class Folder(Protocol):
    """Reads the shards of a split; may be called from many threads."""

    def read(self, shard: str, offset: int, size: int, timers: Timers) -> bytes:
        """Read a part of a shard.

        Args:
            shard: its file name.
            offset: first byte.
            size: bytes.
            timers: receives "bytes"; from an address also "retry", "retry_seconds", "disk_hit" and
                "disk_miss".

        Raises:
            DataError: these bytes are not there; the message is the reason alone.
            StorageError: the place does not answer.
        """
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        """Read the shards of a folder."""
        self.path = path

    def read(self, shard: str, offset: int, size: int, timers: Timers) -> bytes:
        """See `Folder`."""
        content = read_part(self.path / shard, offset, size)
        timers.add("bytes", size)
        return content


def read_part(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """Read a part of a local shard.

    Raises:
        DataError: these bytes are not there; the message is the reason alone.
        StorageError: this machine cannot read at the moment, also after some tries.
    """
    try:
        content = patiently(_pread, path, offset, size)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(content) < size:
        raise DataError("the shard ends inside this sample")
    return content


def _pread(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    file = open_regular(path)
    try:
        return os.pread(file, size, offset)
    finally:
        os.close(file)


def is_address(root: object) -> bool:
    """Whether a split lies somewhere else than in a local folder."""
    return isinstance(root, str) and bool(_ADDRESS.match(root)) and not root.startswith("file://")


def locate(root: str | os.PathLike[str], config: StorageConfig | None = None) -> Root:
    """Turn a path or an address, as people write it, into a split's root.

    Args:
        root: a folder, or http://, https:// or any other address that fsspec knows.
        config: how to read from an address.

    Raises:
        BackendUnavailableError: fsspec needs another package for this address.
        ValueError: fsspec does not know this kind of address, or it is not complete.
    """
    text = os.fspath(root)
    if isinstance(root, Path) and re.match(r"[a-z][a-z0-9+.-]+:/[^/]", text) and not root.exists():
        raise ValueError(f"{text}: a Path drops a slash of an address; give it as a string")
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    if not is_address(text):
        return Path(text)
    from stmeta.data.storage.remote import RemoteFolder

    return RemoteFolder(text, config or StorageConfig())


def folder_of(root: Root) -> Folder:
    """What reads the shards of a split's root."""
    return LocalFolder(root) if isinstance(root, Path) else root


def read_above(root: Root, name: str) -> bytes | None:
    """A small file of the data set, from the folder above its split; None = it is not there."""
    if not isinstance(root, Path):
        return root.fetch(name, above=True, optional=True)
    path = root.absolute().parent / name
    return path.read_bytes() if path.is_file() else None


def stored_stride(root: Root) -> int:
    """Stride that the shards of a split were made for; 1 = any.

    Raises:
        DataError: the data set's ingest.json is no JSON.
    """
    made = read_above(root, "ingest.json")
    if made is None:
        return 1
    try:
        stride = json.loads(made)["options"]["stride"]
    except (KeyError, TypeError):  # made with other options, or by another program
        return 1
    except (ValueError, RecursionError) as error:
        raise DataError(f"{root}: the ingest.json above it is no JSON: {error}") from error
    return stride if isinstance(stride, int) and stride > 0 else 1


def reading_stats(timers: Timers) -> dict[str, Any]:
    """What `Folder.read` added up, named as in the loader's `stats`."""
    return {
        "bytes_read": int(timers["bytes"]),
        "retries": int(timers["retry"]),
        "read_retry_seconds": timers["retry_seconds"],
        "disk_cache_hits": int(timers["disk_hit"]),
        "disk_cache_misses": int(timers["disk_miss"]),
    }
