"""The file of an index: its columns, and how one of this or another machine is read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stmeta._errors import DataError
from stmeta.data.shards.classes import parse_classes, read_classes
from stmeta.data.shards.index_checks import lists_fault, table_fault

if TYPE_CHECKING:
    from stmeta.data.storage.remote import RemoteFolder

INDEX_NAME = "index.parquet"
VERSION = 1
META = b"stmeta"
_NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": _NAMES,
        "offset": pa.int64(),
        "size": pa.int64(),
        "extension": _NAMES,
        "label": pa.int64(),
        "codec": _NAMES,
        "width": pa.int32(),
        "height": pa.int32(),
        "fps": pa.float64(),
        "frames": pa.int32(),
        "duration_seconds": pa.float64(),
        "variable_rate": pa.bool_(),
        "keyframes": pa.list_(pa.int32()),
        "rotation": pa.int16(),
        "error": _NAMES,
        "sha256": pa.string(),
        "mirror": pa.bool_(),
        "aspect": pa.float32(),
    }
)
_ALWAYS_UNPACKED = 2**28  # bytes
_MAX_UNPACKED = 64  # times the file's bytes; hashes and keys make an index grow four times
# What indexes of earlier versions lack.
_ADDED = {"mirror": False, "aspect": 1.0}
# For checking files and for people; most of an index's memory, and of no use to a loader.
DETAILS = ("keyframes", "sha256")


def equals(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    """Which entries are this text."""
    return pc.call_function("equal", [column.cast(pa.string()), pa.scalar(text)])


def load(path: Path, *, details: bool) -> tuple[pa.Table | None, dict[str, Any], str]:
    """The stored table, what its metadata says, and why there is none.

    What comes back was checked, except against the shards that are there: any file may lie here.
    """
    if not path.is_file():
        return None, {}, "there is no index"
    return _parse(path, details)


def _parse(source: Path | bytes, details: bool) -> tuple[pa.Table | None, dict[str, Any], str]:
    def file() -> Any:
        return io.BytesIO(source) if isinstance(source, bytes) else source

    try:
        with pq.ParquetFile(file(), pre_buffer=False, page_checksum_verification=True) as stored:
            schema = stored.schema_arrow
            meta = json.loads((schema.metadata or {})[META])
            if not isinstance(meta, dict):
                return None, {}, "the index has another format"
            added = [name for name in _ADDED if name not in schema.names]
            known = pa.schema([field for field in SCHEMA if field.name not in added])
            if meta["version"] != VERSION or not schema.equals(known):
                return None, {}, "the index has another format"
            if fault := lists_fault(meta.get("shards"), meta.get("classes")):
                return None, {}, fault
            if fault := _size_fault(stored.metadata, source):
                return None, {}, fault
            columns = [name for name in known.names if details or name not in DETAILS]
            table = stored.read(columns=columns)
        for name in added:
            values = pa.repeat(pa.scalar(_ADDED[name], SCHEMA.field(name).type), table.num_rows)
            table = table.append_column(SCHEMA.field(name), values)
        pa.default_memory_pool().release_unused()  # reading takes twice what is read
        fault = table_fault(table, meta["shards"], meta["classes"])
        if fault:
            return None, {}, f"the index is not of these shards ({fault})"
        return table, meta, ""
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        return None, {}, f"the index cannot be read ({error})"


def _size_fault(metadata: pq.FileMetaData, source: Path | bytes) -> str:
    """What is wrong with how much an index unpacks to."""
    packed = len(source) if isinstance(source, bytes) else source.stat().st_size
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if any(group.num_rows < 0 or group.total_byte_size < 0 for group in groups):
        return "its sizes are negative"
    if max(unpacked, 16 * metadata.num_rows) > _ALWAYS_UNPACKED + _MAX_UNPACKED * packed:
        return f"its {packed} bytes unpack to {unpacked} and {metadata.num_rows} rows"
    return ""


def read_local(
    path: Path, shards: dict[str, list[int]], *, details: bool
) -> tuple[pa.Table | None, str]:
    """The table, or why it does not fit the shards."""
    table, meta, reason = load(path, details=details)
    if table is None:
        return None, reason
    if meta["shards"] != shards:
        changed = {
            name
            for name in {*meta["shards"], *shards}
            if meta["shards"].get(name) != shards.get(name)
        }
        return None, f"the index is out of date ({len(changed)} shards changed)"
    if meta["classes"] != read_classes(path.parent):
        return None, "the index is out of date (classes.json changed)"
    return table, ""


def read_remote(root: RemoteFolder, *, details: bool) -> tuple[pa.Table, list[str] | None]:
    """The table and the classes of a split at an address; nothing there is taken on trust."""
    content = root.fetch(INDEX_NAME)
    if content is None:
        raise DataError(
            f"{root}: there is no {INDEX_NAME}, and shards are only indexed where they lie: run "
            "`stmeta index FOLDER` there and put the file beside the shards, or check the address"
        )
    table, meta, fault = _parse(content, details)
    above = root.fetch("classes.json", above=True, optional=True)
    names = above or root.fetch("classes.json", optional=True)
    if table is not None and names is not None:
        if parse_classes(names, f"{root}: classes.json") != meta["classes"]:
            fault = "classes.json has changed since"
    if table is None or fault:
        raise DataError(f"{root}: {INDEX_NAME}: {fault}; run `stmeta index` there again")
    root.shards = meta["shards"]
    return table, meta["classes"]
