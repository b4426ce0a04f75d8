"""An index from somebody else: nothing that it says is used before it was looked at."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stmeta._errors import DataError
from stmeta.data.index_file import META, SCHEMA
from stmeta.data.shards import ShardIndex

from ._served import memory, split, storage

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
