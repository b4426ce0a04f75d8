"""An index from somebody else: nothing that it says is used before it was looked at."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stmeta._errors import DataError
from stmeta.data.shards.index_file import META, SCHEMA
from stmeta.data.shards.writer import ShardIndex
from tests.data._served import memory, split, storage

__all__ = ["memory", "split"]


def change(table: pa.Table, row: int, **values) -> pa.Table:
    for name, value in values.items():
        column = table[name].to_pylist()
        column[row] = value
        place = table.column_names.index(name)
        table = table.set_column(
            place, SCHEMA.field(name), pa.array(column, SCHEMA.field(name).type)
        )
    return table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shard": "../../secret.tar"}, "samples lie in files that are not among its shards"),
        ({"offset": -1}, "1 samples lie outside of their shards"),
        ({"size": 2**40}, "1 samples lie outside of their shards"),
        ({"offset": 2**63 - 1, "size": 2**31}, "1 samples lie outside of their shards"),
        ({"size": None}, "values are missing"),
        ({"label": 2}, r"label must be in \[-1, 1\]"),
        ({"frames": 2**31 - 1}, r"frames must be in \[1, 16777216\]"),
        ({"fps": float("nan")}, "fps must be in"),
        ({"rotation": 45}, "rotation must be 0, 90"),
    ],
)
def test_foreign_rows_are_refused(split, memory, tmp_path, values, message):
    table = change(pq.read_table(split / "index.parquet"), 4, **values)
    refused(memory, table, tmp_path, message)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"shards": {"../x.tar": [9, 9]}}, r"'../x.tar' is no file name of a shard"),
        ({"shards": {"a/x.tar": [9, 9]}}, "'a/x.tar' is no file name of a shard"),
        ({"shards": {"x.tar": [9]}}, "the size of 'x.tar' is not given"),
        ({"shards": []}, "it lists no shards"),
        ({"classes": [1, 2]}, "its classes are no names"),
        ({"classes": ["b", "a"]}, "classes.json has changed since"),
        ({"version": 99}, "the index has another format"),
    ],
)
def test_foreign_metadata_is_refused(split, memory, tmp_path, meta, message):
    table = pq.read_table(split / "index.parquet")
    record = json.loads(table.schema.metadata[META]) | meta
    refused(memory, table.replace_schema_metadata({META: json.dumps(record)}), tmp_path, message)


def refused(memory, table: pa.Table, tmp_path, message: str) -> None:
    path = tmp_path / "index.parquet"
    pq.write_table(table, path)
    memory[1].pipe("/set/train/index.parquet", path.read_bytes())
    with pytest.raises(DataError, match=rf"set/train: index.parquet: .*{message}.*`stmeta index`"):
        ShardIndex.open(memory[0], storage(tmp_path))


def test_a_local_index_of_other_places_is_built_again(split, tmp_path, caplog):
    root = tmp_path / "train"
    root.mkdir()
    for path in split.glob("*.tar"):
        (root / path.name).write_bytes(path.read_bytes())
    good = ShardIndex.open(root)
    table = change(pq.read_table(root / "index.parquet"), 4, shard="../../secret.tar")
    pq.write_table(table, root / "index.parquet")
    caplog.clear()
    index = ShardIndex.open(root)
    assert "the index is not of these shards" in caplog.text
    assert [index.row(i).shard for i in range(9)] == [good.row(i).shard for i in range(9)]


LOCAL = [
    ({"label": 2**40}, "label must be in"),
    ({"label": -2}, "label must be in"),
    ({"frames": 2**31 - 1}, "frames must be in"),
    ({"frames": 2**20}, "more frames than bytes"),
    ({"frames": 0}, "frames must be in"),
    ({"fps": float("nan")}, "fps must be in"),
    ({"duration_seconds": float("inf")}, "duration_seconds must be in"),
    ({"width": 2**20}, "width must be in"),
    ({"rotation": 45}, "rotation must be 0, 90"),
    ({"offset": -512}, "lie outside of their shards"),
    ({"key": None}, "values are missing"),
    ({"error": None}, "values are missing"),
    ({"keyframes": [0, 99]}, "key frames lie outside"),
]


@pytest.fixture
def local(split, tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    (tmp_path / "classes.json").write_text((split.parent / "classes.json").read_text())
    for path in split.glob("*.tar"):
        (root / path.name).write_bytes(path.read_bytes())
    ShardIndex.open(root)
    return root


@pytest.mark.parametrize(("values", "message"), LOCAL)
def test_a_local_index_is_checked_like_any_other(local, caplog, values, message):
    """And made again: the shards are here."""
    good, path = ShardIndex.open(local, details=True), local / "index.parquet"
    pq.write_table(change(pq.read_table(path), 4, **values), path)
    caplog.clear()
    index = ShardIndex.open(local, details=True)
    assert message in caplog.text
    assert [index.row(i) for i in range(9)] == [good.row(i) for i in range(9)]


@pytest.mark.parametrize(
    "meta",
    [
        b"[]",
        b"1",
        b'{"version": 1}',
        b'{"version": 1, "shards": [], "classes": null}',
        b'{"version": 1, "shards": {"a.tar": [1e400, 0]}, "classes": null}',
        b'{"version": 1, "shards": {"a.tar": [%d, 0]}, "classes": null}' % 2**70,
        b'{"version": 1, "shards": {"a.tar": [9, 0]}, "classes": ["\\ud800"]}',
        b'{"version": 1, "shards": ' + b"[" * 100_000,
    ],
)
def test_metadata_of_a_local_index_that_is_none(local, caplog, meta):
    path = local / "index.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({META: meta}), path)
    caplog.clear()
    assert len(ShardIndex.open(local)) == 9 and "indexing" in caplog.text


def test_a_flipped_bit_of_an_index_is_found(local):
    """Pages have checksums, so no label changes without a word."""
    path = local / "index.parquet"
    content, good = path.read_bytes(), ShardIndex.open(local, details=True)
    rows, numbers = [good.row(i) for i in range(9)], random.Random(0)
    for place in numbers.sample(range(len(content)), 60):
        changed = bytearray(content)
        changed[place] ^= 1 << numbers.randrange(8)
        path.write_bytes(changed)
        index = ShardIndex.open(local, details=True)
        assert [index.row(i) for i in range(9)] == rows, f"byte {place}"


def test_an_index_that_unpacks_to_too_much(local, caplog, monkeypatch):
    monkeypatch.setattr("stmeta.data.shards.index_file._ALWAYS_UNPACKED", 2**20)
    table = pq.read_table(local / "index.parquet")
    large = pa.array(["k" * 2**20] * len(table)).take(pa.array([0] * 16))
    bomb = table.take(pa.array([0] * 16)).set_column(0, "key", large)
    pq.write_table(
        bomb.replace_schema_metadata(table.schema.metadata),
        local / "index.parquet",
        compression="zstd",
        use_dictionary=False,
    )
    caplog.clear()
    assert len(ShardIndex.open(local)) == 9 and "unpack to" in caplog.text
