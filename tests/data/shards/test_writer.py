from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shutil
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from stmeta._errors import DataError
from stmeta.data.shards.writer import (
    EncodedSample,
    KeyMaker,
    ShardIndex,
    build_index,
    read_classes,
    write_classes,
    write_shards,
)
from stmeta.data.video.probe import probe

CLASSES = ["bend", "jump", "wave"]


@pytest.fixture(scope="module")
def videos(make_video) -> list[bytes]:
    return [make_video(i, frames=8 + i) for i in range(9)]


def samples(videos: list[bytes]) -> list[EncodedSample]:
    return [
        EncodedSample(
            key=f"clip {i}.v1",
            video=video,
            extension="mp4",
            label=i % 3,
            label_text=CLASSES[i % 3],
            source=f"{CLASSES[i % 3]}/clip {i}.v1.mp4",
        )
        for i, video in enumerate(videos)
    ]


@pytest.fixture
def split(videos, tmp_path) -> Path:
    write_shards(samples(videos), tmp_path / "train", classes=CLASSES, shard_mib=0.005)
    return tmp_path / "train"


def test_round_trip(split, videos):
    index = ShardIndex.open(split, details=True)
    assert len(index) == 9 and index.bad == [] and index.codecs == {"h264"}
    assert index.classes == CLASSES and len(list(split.glob("*.tar"))) > 2
    assert index.labels.dtype == np.int64 and index.labels.tolist() == [0, 1, 2] * 3
    assert index.frames.dtype == np.int32 and index.frames.tolist() == list(range(8, 17))
    for i, video in enumerate(videos):
        row = index.row(i)
        assert index.read(i) == video
        assert (split / row.shard).read_bytes()[row.offset :][: row.size] == video
        assert row.key == f"clip_{i}_v1" == index.keys[i]
        info = probe(video)
        shared = set(info._fields) - {"container", "breaks", "films"}  # the index has all others
        assert all(getattr(row, name) == getattr(info, name) for name in shared)
    with pytest.raises(IndexError):
        index.row(9)
    again = pickle.loads(pickle.dumps(index))
    assert again.row(4) == index.row(4) and len(again) == 9


def test_a_large_index_is_small_in_memory(split, tmp_path):
    table = pq.read_table(split / "index.parquet")
    names = table["key"].to_pylist()
    many = pa.concat_tables([table] * 10_000).unify_dictionaries()
    keys = pa.array([f"{name}_{i}" for i in range(10_000) for name in names])
    many = many.set_column(0, "key", keys)
    large = tmp_path / "large"
    large.mkdir()
    for shard in split.glob("*.tar"):
        shutil.copy2(shard, large)
    pq.write_table(many.replace_schema_metadata(table.schema.metadata), large / "index.parquet")
    before = pa.total_allocated_bytes()
    index = ShardIndex.open(large)
    assert len(index) == 10_000 * len(names)
    assert (pa.total_allocated_bytes() - before) / len(index) < 110
    row = index.row(len(names) + 2)
    assert row.key == f"{names[2]}_1" and row.keyframes == () and row.sha256 == ""
    assert ShardIndex.open(split, details=True).row(2).sha256


def test_members(split, videos):
    with tarfile.open(split / "000000.tar") as tar:
        names = tar.getnames()
        assert names[:4] == [f"clip_0_v1.{ext}" for ext in ("mp4", "cls", "nframes", "json")]
        content = {name: tar.extractfile(name).read() for name in names[:4]}
    assert content["clip_0_v1.cls"] == b"0"
    assert struct.unpack("<i", content["clip_0_v1.nframes"]) == (8,)
    record = json.loads(content["clip_0_v1.json"])
    assert record["source"] == "bend/clip 0.v1.mp4" and record["label_text"] == "bend"
    assert record["frames"] == 8 and record["fps"] == 25


def test_shards_are_the_same_every_time(split, videos, tmp_path):
    write_shards(samples(videos), tmp_path / "again" / "train", classes=CLASSES, shard_mib=0.005)
    names = sorted(path.name for path in split.glob("0*"))
    assert names == sorted(path.name for path in (tmp_path / "again" / "train").glob("0*"))
    for name in names:
        assert (split / name).read_bytes() == (tmp_path / "again" / "train" / name).read_bytes()


def test_dali_index_is_what_its_tool_writes(split, tmp_path):
    tool = pytest.importorskip("wds2idx")
    for shard in sorted(split.glob("*.tar")):
        with tool.IndexCreator(str(shard), str(tmp_path / "x.idx"), verbose=False) as creator:
            creator.create_index()
        ours = shard.with_suffix(".idx")
        assert ours.read_text() == (tmp_path / "x.idx").read_text()
        expected = ours.read_text()
        ours.unlink()
        build_index(split)  # writes it again from the tar's headers
        assert ours.read_text() == expected


def test_webdataset_reads_them(split, videos):
    found = []
    for path in sorted(split.glob("*.tar")):
        with open(path, "rb") as file:  # webdataset would leave it open
            source = [{"url": str(path), "stream": file}]
            found += group_by_keys(tar_file_expander(source))
    assert [sample["mp4"] for sample in found] == videos
    assert [sample["cls"] for sample in found] == [b"0", b"1", b"2"] * 3


def test_keys():
    make = KeyMaker()
    names = ["a b", "a.b", "a_b", "ä", "", "a_b-2", "x" * 200]
    keys = [make(name) for name in names]
    assert keys[:4] == ["a_b", "a_b-2", "a_b-3", "_"] and len(set(keys)) == len(keys)
    again = KeyMaker()
    assert [again(name) for name in names] == keys
    assert all(len(key) < 100 for key in keys)


def test_nothing_is_left_of_a_failed_shard(videos, tmp_path):
    def failing():
        yield from samples(videos)[:2]
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_shards(failing(), tmp_path / "train")
    assert list((tmp_path / "train").iterdir()) == []


def test_write_refuses(split, videos, tmp_path):
    with pytest.raises(DataError, match="holds shards already"):
        write_shards(samples(videos), split)
    good = samples(videos)[0]
    for change, reason in (
        ({"extension": "exe"}, "extension must be one of mp4"),
        ({"label": 3}, "label must be -1 or below 3"),
        ({"video": b"garbage" * 100}, "not a video"),
    ):
        bad = dataclasses.replace(good, **change)
        with pytest.raises((ValueError, DataError), match=reason):
            write_shards([bad], tmp_path / "other", classes=CLASSES)
    with pytest.raises(DataError, match="lists other classes"):
        write_classes(tmp_path, ["something", "else"])


def test_broken_videos_are_listed(videos, tmp_path):
    mixed = samples(videos)
    mixed[1] = dataclasses.replace(mixed[1], video=b"garbage" * 100)
    mixed[3] = dataclasses.replace(mixed[3], video=b"")
    mixed[5] = dataclasses.replace(mixed[5], video=videos[5][: len(videos[5]) * 6 // 10])
    index = write_shards(mixed, tmp_path / "train", check=False)
    assert len(index) == 6 and index.labels.tolist() == [0, 2, 1, 0, 1, 2]
    reasons = {row.key: row.error for row in index.bad}
    assert "not a video" in reasons["clip_1_v1"]
    assert "empty" in reasons["clip_3_v1"]
    assert "truncated: the data ends after" in reasons["clip_5_v1"]
    assert ShardIndex.open(tmp_path / "train").bad == [row._replace(sha256="") for row in index.bad]


def test_a_lost_end_shows_in_the_frame_count(videos, tmp_path):
    """Written live, a WebM does not say how long it is; the member beside it does."""
    info = probe(videos[8])
    sample = dataclasses.replace(samples(videos)[8], info=info._replace(frames=60))
    index = write_shards([sample], tmp_path / "train")
    assert len(index) == 0
    assert index.bad[0].error == "truncated: the video has 16 of 60 frames"


def test_stale_index_is_rebuilt(split, videos, caplog):
    caplog.set_level(logging.WARNING)
    ShardIndex.open(split)
    assert caplog.text == ""
    (split / "index.parquet").unlink()
    assert len(ShardIndex.open(split)) == 9 and "there is no index" in caplog.text
    (split / "index.parquet").write_bytes(b"PAR1 broken")
    assert len(ShardIndex.open(split)) == 9 and "cannot be read" in caplog.text

    first = ShardIndex.open(split).row(0)
    shard = split / first.shard
    content = bytearray(shard.read_bytes())
    content[first.offset : first.offset + first.size] = bytes(first.size)
    shard.write_bytes(content)
    caplog.clear()
    index = ShardIndex.open(split)
    assert "out of date (1 shards changed)" in caplog.text
    assert len(index) == 8 and "zeros" in index.bad[0].error
    caplog.clear()
    assert len(ShardIndex.open(split)) == 8 and caplog.text == ""

    shard.unlink()
    assert len(ShardIndex.open(split)) < 8 and "out of date" in caplog.text
    (split.parent / "classes.json").write_text('["only one"]')
    assert {row.error for row in ShardIndex.open(split).bad} == {
        "the label 1 has no name among 1 classes",
        "the label 2 has no name among 1 classes",
    }


def test_unchanged_shards_are_not_read_again(split, monkeypatch):
    before = build_index(split)
    monkeypatch.setattr("stmeta.data.shards.index.scan_shard", lambda *_: pytest.fail("read again"))
    assert build_index(split).row(3) == before.row(3)


def test_read_only_folder(split, monkeypatch, caplog):
    (split / "index.parquet").unlink()

    def refuse(*_args, **_options):
        raise PermissionError("read-only")

    monkeypatch.setattr("stmeta.data.shards.index.pq.write_table", refuse)
    assert len(ShardIndex.open(split)) == 9
    assert "cannot be saved" in caplog.text and not list(split.glob("*.tmp"))


def test_a_shard_that_shrank(split):
    index = ShardIndex.open(split)
    shard = split / index.row(0).shard
    os.truncate(shard, index.row(0).offset + 10)
    with pytest.raises(DataError, match="ends inside"):
        index.read(0)


def test_missing_folders(split, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ShardIndex.open(tmp_path / "nothing")
    with pytest.raises(DataError, match="did you mean one of its splits: train"):
        ShardIndex.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no shards"):
        ShardIndex.open(tmp_path / "empty")
    (split.parent / "classes.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="list of names"):
        read_classes(split)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_shard_cut_anywhere(split, share, caplog):
    shard = split / "000000.tar"
    whole = {row.key for row in map(ShardIndex.open(split).row, range(9))}
    os.truncate(shard, int(shard.stat().st_size * share))
    index = ShardIndex.open(split)
    assert set(index.keys) < whole or share > 0.9
    assert all(row.error for row in index.bad)
    for i in range(len(index)):
        assert probe(index.read(i)).frames == index.frames[i]


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, bytes(10240), b"\x1f\x8b" + bytes(99)])
def test_shards_that_are_none(split, content):
    (split / "zzz.tar").write_bytes(content)
    index = ShardIndex.open(split)
    assert len(index) == 9
    assert [(row.shard, row.key) for row in index.bad] == [("zzz.tar", "")]
    assert "shard" in index.bad[0].error


def test_two_at_once_and_leftovers(split):
    (split / "000009.tar.tmp").write_bytes(b"half a shard")
    shutil.copy(split / "000000.tar", split.parent / "x.tar")
    assert len(ShardIndex.open(split)) == 9
    index = build_index(split, workers=2, full=True)
    assert len(index) == 9 and index.row(8) == build_index(split).row(8)


@pytest.mark.slow
def test_opening_does_not_read_the_shards(split):
    """A sparse shard of 1 TiB: only its size and time are looked at."""
    index = build_index(split)
    shard = split / "000000.tar"
    os.truncate(shard, 2**40)
    stamp = shard.stat()
    import pyarrow.parquet as pq

    table = pq.read_table(split / "index.parquet")
    meta = json.loads(table.schema.metadata[b"stmeta"])
    meta["shards"]["000000.tar"] = [stamp.st_size, stamp.st_mtime_ns]
    pq.write_table(
        table.replace_schema_metadata({b"stmeta": json.dumps(meta)}), split / "index.parquet"
    )
    begin = time.monotonic()
    assert ShardIndex.open(split).keys == index.keys
    assert time.monotonic() - begin < 20
