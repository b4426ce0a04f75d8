"""The index of a split: one row per sample, so that a loader never has to look for one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stmeta._errors import DataError
from stmeta.data.classes import read_classes
from stmeta.data.tarscan import EXTENSIONS, SampleInfo, scan_shard, write_dali_index

__all__ = [
    "EXTENSIONS",
    "SampleInfo",
    "ShardIndex",
    "build_index",
]

INDEX_NAME = "index.parquet"
_VERSION = 1
_META = b"stmeta"
_NAMES = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
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
    }
)
_log = logging.getLogger("stmeta.data")


class ShardIndex:
    """The samples of one split, good ones by position, bad ones with their reason.

    Columns stay as arrays; a row is built when it is asked for. Pickles, for worker processes.

    Attributes:
        root: folder of the split.
        classes: name of each label.
        labels: int64 [n], -1 = unlabelled.
        frames: int32 [n], frames of each video.
    """

    def __init__(self, root: Path, table: pa.Table, classes: Sequence[str] | None) -> None:
        self.root = Path(root)
        good = _equals(table["error"], "")
        bad = pc.call_function("invert", [good])
        # A filter copies, and most data sets need none.
        some_bad = pc.call_function("any", [bad]).as_py()
        self._table = table.filter(good).combine_chunks() if some_bad else table.combine_chunks()
        self._bad = table.filter(bad)
        self.labels: np.ndarray = np.array(self._table["label"])
        self.frames: np.ndarray = np.array(self._table["frames"])
        count = int(self.labels.max(initial=-1)) + 1
        self.classes: list[str] = [str(i) for i in range(count)] if classes is None else [*classes]

    @classmethod
    def open(cls, split_dir: str | os.PathLike[str]) -> ShardIndex:
        """Open the index of a split; build it where it is missing or older than a shard.

        Args:
            split_dir: folder with the shards.

        Raises:
            DataError: there are no shards.
        """
        root = Path(split_dir)
        shards = _shard_stamps(root)
        table, reason = _read(root / INDEX_NAME, shards)
        if table is None:
            _log.warning("%s: %s; indexing %d shards", root, reason, len(shards))
            return build_index(root)
        return cls(root, table, read_classes(root))

    def __len__(self) -> int:
        return self._table.num_rows

    def __repr__(self) -> str:
        return f"ShardIndex({str(self.root)!r}, {len(self)} samples, {self._bad.num_rows} bad)"

    def row(self, i: int) -> SampleInfo:
        """Return good sample i, 0 <= i < len(self).

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return _row(self._table, i)

    def read(self, i: int) -> bytes:
        """Return the encoded video of good sample i.

        Raises:
            DataError: the shard is shorter than the index says.
        """
        info = self.row(i)
        with open(self.root / info.shard, "rb") as file:
            content = os.pread(file.fileno(), info.size, info.offset)
        if len(content) != info.size:
            raise DataError(f"{info.shard}: ends inside {info.key!r}; was it changed meanwhile?")
        return content

    @property
    def bad(self) -> list[SampleInfo]:
        """Samples that cannot be used; `error` says why. A whole bad shard has no key."""
        return [_row(self._bad, i) for i in range(self._bad.num_rows)]

    @property
    def codecs(self) -> set[str]:
        """Codecs of the good samples."""
        return set(self._table["codec"].unique().to_pylist())

    @property
    def keys(self) -> list[str]:
        """Keys of the good samples, in order."""
        return self._table["key"].to_pylist()


def build_index(
    split_dir: str | os.PathLike[str], *, workers: int = 1, full: bool = False
) -> ShardIndex:
    """Index the shards of a split and write `index.parquet`; broken samples are listed as such.

    DALI's `.idx` is written beside shards that have none or an older one. Rows of shards that did
    not change since the last index are kept. Where the folder cannot be written to, the index is
    built in memory only.

    Args:
        split_dir: folder with the shards.
        workers: processes that read shards.
        full: read every shard again.

    Raises:
        DataError: there are no shards.
    """
    root = Path(split_dir)
    shards = _shard_stamps(root)
    classes = read_classes(root)
    # Labels are checked against the names, so other names make every row stale.
    kept = {} if full else _unchanged(root / INDEX_NAME, shards, classes)
    todo = [root / name for name in shards if name not in kept]
    for path, rows in zip(todo, _scan_all(todo, classes, workers), strict=True):
        kept[path.name] = _to_table(rows)
    for name in shards:
        write_dali_index(root / name)
    table = pa.concat_tables([kept[name] for name in shards]).unify_dictionaries()
    meta = {"version": _VERSION, "shards": shards, "classes": classes}
    table = table.replace_schema_metadata({_META: json.dumps(meta).encode()})
    partial = root / f"{INDEX_NAME}.{os.getpid()}.tmp"
    try:
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, root / INDEX_NAME)
    except OSError as error:
        _log.warning("%s: the index cannot be saved and will be built again: %s", root, error)
    finally:
        if partial.exists():
            partial.unlink()
    return ShardIndex(root, table, classes)


def _shard_stamps(root: Path) -> dict[str, list[int]]:
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; `stmeta shard` makes one from videos")
    stamps = {}
    for path in sorted(root.glob("*.tar")):
        stat = path.stat()
        stamps[path.name] = [stat.st_size, stat.st_mtime_ns]
    if not stamps:
        splits = sorted({path.parent.name for path in root.glob("*/*.tar")})
        hint = f"; did you mean one of its splits: {', '.join(splits)}?" if splits else ""
        raise DataError(f"{root}: there are no shards (*.tar){hint}")
    return stamps


def _load(
    path: Path, columns: list[str] | None = None
) -> tuple[pa.Table | None, dict[str, Any], str]:
    """The stored table, what its metadata says, and why there is none."""
    if not path.is_file():
        return None, {}, "there is no index"
    try:
        schema = pq.read_schema(path)
        meta = json.loads((schema.metadata or {})[_META])
        if meta["version"] != _VERSION or not schema.equals(_SCHEMA):
            return None, {}, "the index has another format"
        return pq.read_table(path, columns=columns), meta, ""
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return None, {}, f"the index cannot be read ({error})"


def _read(path: Path, shards: dict[str, list[int]]) -> tuple[pa.Table | None, str]:
    # Hashes are for checking the files, half of the index's memory, and of no use to a reader.
    table, meta, reason = _load(path, [name for name in _SCHEMA.names if name != "sha256"])
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


def _unchanged(
    path: Path, shards: dict[str, list[int]], classes: list[str] | None
) -> dict[str, pa.Table]:
    table, meta, _ = _load(path)
    if table is None or meta["classes"] != classes:
        return {}
    same = [name for name, stamp in shards.items() if meta["shards"].get(name) == stamp]
    return {name: table.filter(_equals(table["shard"], name)) for name in same}


def _equals(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    return pc.call_function("equal", [column.cast(pa.string()), pa.scalar(text)])


def _scan_all(paths: list[Path], classes: list[str] | None, workers: int) -> list[list[SampleInfo]]:
    if workers <= 1 or len(paths) <= 1:
        return [scan_shard(path, classes) for path in paths]
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(paths)), mp_context=context) as pool:
        return list(pool.map(scan_shard, paths, [classes] * len(paths)))


def _to_table(rows: list[SampleInfo]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SampleInfo._fields}
    return pa.table(
        {name: pa.array(values, _SCHEMA.field(name).type) for name, values in columns.items()},
        schema=_SCHEMA,
    )


def _row(table: pa.Table, i: int) -> SampleInfo:
    values: dict[str, Any] = {name: table[name][i].as_py() for name in table.column_names}
    values["keyframes"] = tuple(values["keyframes"])
    return SampleInfo(**values)
