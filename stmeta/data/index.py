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
from stmeta.data.tarscan import EXTENSIONS, SampleInfo, scan_shard

__all__ = [
    "EXTENSIONS",
    "SampleInfo",
    "ShardIndex",
    "build_index",
    "read_classes",
    "write_classes",
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
        good = pc.equal(table["error"].cast(pa.string()), "")
        self._table = table.filter(good).combine_chunks()
        self._bad = table.filter(pc.invert(good))
        self.labels: np.ndarray = self._table["label"].to_numpy()
        self.frames: np.ndarray = self._table["frames"].to_numpy()
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
        return set(pc.unique(self._table["codec"]).to_pylist())

    @property
    def keys(self) -> list[str]:
        """Keys of the good samples, in order."""
        return self._table["key"].to_pylist()


def build_index(
    split_dir: str | os.PathLike[str], *, workers: int = 1, full: bool = False
) -> ShardIndex:
    """Index the shards of a split and write `index.parquet`; broken samples are listed as such.

    Rows of shards that did not change since the last index are kept. Where the folder cannot be
    written to, the index is built in memory only.

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


def read_classes(split_dir: str | os.PathLike[str]) -> list[str] | None:
    """Class names of a split, from classes.json above it or in it; None = there is no such file.

    Raises:
        DataError: the file is not a list of names.
    """
    for folder in (Path(split_dir).absolute().parent, Path(split_dir)):
        path = folder / "classes.json"
        if not path.is_file():
            continue
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: must be a list of names, one per label")
        return names
    return None


def write_classes(folder: str | os.PathLike[str], classes: Sequence[str]) -> None:
    """Write classes.json into a data set's folder.

    Raises:
        DataError: the folder has other names already.
    """
    path = Path(folder) / "classes.json"
    text = json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) == list(classes):
            return
        raise DataError(
            f"{path}: lists other classes, so labels would change their meaning; "
            "choose another folder"
        )
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _shard_stamps(root: Path) -> dict[str, list[int]]:
    """Size and mtime_ns of each shard, by name, in name order."""
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


def _load(path: Path) -> tuple[pa.Table | None, dict[str, Any], str]:
    """The stored table, what its metadata says, and why there is none."""
    if not path.is_file():
        return None, {}, "there is no index"
    try:
        table = pq.read_table(path, memory_map=True)
        meta = json.loads((table.schema.metadata or {})[_META])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return None, {}, f"the index cannot be read ({error})"
    if meta.get("version") != _VERSION or not table.schema.equals(_SCHEMA):
        return None, {}, "the index has another format"
    return table, meta, ""


def _read(path: Path, shards: dict[str, list[int]]) -> tuple[pa.Table | None, str]:
    table, meta, reason = _load(path)
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
    names = table["shard"].cast(pa.string())
    same = [name for name, stamp in shards.items() if meta["shards"].get(name) == stamp]
    return {name: table.filter(pc.equal(names, name)) for name in same}


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
    values = {name: table[name][i].as_py() for name in SampleInfo._fields}
    return SampleInfo(**values | {"keyframes": tuple(values["keyframes"])})
