"""The index of a split: one row per sample, so that a loader never has to look for one."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta._util.workers import ordered_map
from stmeta.data.shards.classes import read_classes
from stmeta.data.shards.index_file import (
    INDEX_NAME,
    META,
    SCHEMA,
    VERSION,
    equals,
    load,
    read_local,
    read_remote,
)
from stmeta.data.shards.tar_index import SampleInfo, bad_sample, scan_shard, write_dali_index
from stmeta.data.storage.config import StorageConfig
from stmeta.data.storage.folder import StorageError, folder_of, locate
from stmeta.data.video.containers import EXTENSIONS

if TYPE_CHECKING:
    from stmeta.data.storage.folder import Root

__all__ = [
    "EXTENSIONS",
    "BadSample",
    "SampleInfo",
    "ShardIndex",
    "build_index",
]

_log = logging.getLogger("stmeta.data")


class BadSample(NamedTuple):
    """A sample that a loader skipped, or that did not pass verification.

    Attributes:
        shard: file name of the shard; of a verification, its path.
        key: name of the sample; "" = the whole shard, or an index.
        reason: everything that was found, in words.
        level: of a verification, the first level that failed; else "".
    """

    shard: str
    key: str
    reason: str
    level: str = ""


class ShardIndex:
    """The samples of one split, good ones by position, bad ones with their reason.

    Columns stay as arrays; a row is built when it is used. Pickles, for worker processes.

    Attributes:
        root: folder of the split, or what reads it from an address; as a string, its name.
        classes: name of each label.
        labels: int64 [n], -1 = unlabelled.
        frames: int32 [n], frames of each video.
    """

    def __init__(self, root: Root, table: pa.Table, classes: Sequence[str] | None) -> None:
        self.root = root
        good = equals(table["error"], "")
        bad = pc.call_function("invert", [good])
        # A filter copies, and most data sets need none.
        some_bad = pc.call_function("any", [bad]).as_py()
        self._table = table.filter(good).combine_chunks() if some_bad else table
        self._bad = table.filter(bad)
        self.labels: np.ndarray = np.array(self._table["label"])
        self.frames: np.ndarray = np.array(self._table["frames"])
        count = int(self.labels.max(initial=-1)) + 1
        self.classes: list[str] = [str(i) for i in range(count)] if classes is None else [*classes]

    @classmethod
    def open(
        cls,
        split_dir: str | os.PathLike[str],
        storage: StorageConfig | None = None,
        *,
        details: bool = False,
    ) -> ShardIndex:
        """Open the index of a split; build it where it is missing or older than a shard.

        Args:
            split_dir: folder with the shards, or its address, where an index must be already.
            storage: how to read from an address.
            details: read key frames and hashes too, most of an index's bytes; rows have none else.

        Raises:
            DataError: there are no shards, or no index at the address.
            StorageError: the address does not answer.
            ValueError: it is no address.
        """
        root = locate(split_dir, storage)
        if not isinstance(root, Path):
            return cls(root, *read_remote(root, details=details))
        shards = _shard_stamps(root)
        table, reason = read_local(root / INDEX_NAME, shards, details=details)
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
            DataError: the shard is not there, or shorter than the index says.
            StorageError: the address does not answer.
        """
        info = self.row(i)
        try:
            return folder_of(self.root).read(info.shard, info.offset, info.size, Timers())
        except StorageError:
            raise
        except DataError as error:
            raise DataError(f"{info.shard}: {info.key}: {error}") from error

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

    def columns(self, names: Sequence[str]) -> dict[str, list]:
        """Return fields of `SampleInfo` for all good samples, in order."""
        return self._table.select(list(names)).to_pydict()


def build_index(
    split_dir: str | os.PathLike[str],
    *,
    workers: int = 1,
    full: bool = False,
    must_save: bool = False,
) -> ShardIndex:
    """Index the shards of a split and write `index.parquet`; broken samples are listed as such.

    DALI's `.idx` is written beside shards that have none or an older one. Rows of shards that did
    not change since the last index are kept. Where the folder cannot be written to, the index is
    built in memory only.

    Args:
        split_dir: folder with the shards.
        workers: processes that read shards.
        full: read every shard again.
        must_save: raise where the folder cannot be written to.

    Raises:
        DataError: there are no shards.
        OSError: with `must_save`.
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
    meta = {"version": VERSION, "shards": shards, "classes": classes}
    table = table.replace_schema_metadata({META: json.dumps(meta).encode()})
    partial = root / f"{INDEX_NAME}.{os.getpid()}.tmp"
    try:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        os.replace(partial, root / INDEX_NAME)
    except OSError as error:
        if must_save:
            raise
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
        if not path.name.isprintable():  # an index could not name it, nor a terminal show it
            raise DataError(
                f"{root}: the name of the shard {path.name!r} has characters that cannot be "
                "printed; rename it"
            )
        try:
            stat = path.stat()
            stamps[path.name] = [stat.st_size, stat.st_mtime_ns]
        except FileNotFoundError:  # a link that leads nowhere: one bad row
            stamps[path.name] = [0, 0]
    if not stamps:
        splits = sorted({path.parent.name for path in root.glob("*/*.tar")})
        hint = f"; did you mean one of its splits: {', '.join(splits)}?" if splits else ""
        raise DataError(f"{root}: there are no shards (*.tar){hint}")
    return stamps


def _unchanged(
    path: Path, shards: dict[str, list[int]], classes: list[str] | None
) -> dict[str, pa.Table]:
    table, meta, _ = load(path, details=True)
    if table is None or meta["classes"] != classes:
        return {}
    same = [name for name, stamp in shards.items() if meta["shards"].get(name) == stamp]
    return {name: table.filter(equals(table["shard"], name)) for name in same}


def _scan_all(paths: list[Path], classes: list[str] | None, workers: int) -> list[list[SampleInfo]]:
    if workers <= 1 or len(paths) <= 1:
        return [scan_shard(path, classes) for path in paths]
    scan = functools.partial(scan_shard, classes=classes)
    return [
        [bad_sample(path.name, str(rows))] if isinstance(rows, DataError) else rows
        for path, rows in ordered_map(scan, paths, min(workers, len(paths)))
    ]


def _to_table(rows: list[SampleInfo]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SampleInfo._fields}
    return pa.table(
        {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()},
        schema=SCHEMA,
    )


def _row(table: pa.Table, i: int) -> SampleInfo:
    values: dict[str, Any] = {name: table[name][i].as_py() for name in table.column_names}
    values["keyframes"] = tuple(values.get("keyframes", ()))
    return SampleInfo(**values)
