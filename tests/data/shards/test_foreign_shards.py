"""Shards that others wrote: judged by their videos, with all containers and webdataset's fields."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import webdataset

from stmeta.data.shards.writer import ShardIndex, build_index
from stmeta.data.verify.verifier import verify
from tests.data._shards import END, entry, found, sample


@pytest.fixture(scope="module")
def video(make_video) -> bytes:
    return make_video(0, frames=8)


def foreign(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(entry(*member) for member in members) + END)
    return path


def test_shards_that_are_no_files(video, tmp_path):
    """A pipe is not waited for; each is one bad row."""
    foreign(tmp_path / "a.tar", sample("a", video))
    os.mkfifo(tmp_path / "b.tar")
    (tmp_path / "c.tar").symlink_to(tmp_path / "nowhere.tar")
    (tmp_path / "d.tar").mkdir()
    index = build_index(tmp_path)
    assert index.keys == ["a"] and {row.shard for row in index.bad} == {"b.tar", "c.tar", "d.tar"}
    assert ShardIndex.open(tmp_path).keys == ["a"]
    report = verify([tmp_path], workers=1)
    assert {Path(bad.shard).name for bad in report.bad} == {"b.tar", "c.tar", "d.tar"}


def test_foreign_shards_are_judged_by_their_videos(video, tmp_path):
    """No frame count, label or plain key is asked of them; a damaged video is still found."""
    path = foreign(
        tmp_path / "s" / "0.tar",
        [
            *(("v x!/a b.mp4", video), ("v x!/a b.txt", b"a caption"), ("README", b"?")),
            *(("b.mp4", video[: len(video) // 2]), ("b.txt", b"cut")),
            *(("c.mp4", video), ("d.mp4", video), ("c.wav", b"apart from its video")),
            ("e.mp4", b"no video" * 99),
        ],
    )
    bad = found(verify([path], level="decode", workers=1))
    assert bad.keys() == {"b", "e"}
    index = build_index(path.parent)
    assert index.keys == ["v x!/a b", "c", "d"] and {row.key for row in index.bad} == {"b", "e"}


def test_shards_that_webdataset_wrote(video, make_video, tmp_path):
    videos = [video, make_video(1, frames=10), make_video(2, frames=6)]
    (tmp_path / "s").mkdir()
    pattern = str(tmp_path / "s" / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2, verbose=0) as shards:
        for number, content in enumerate(videos):
            label = {"label": number, "caption": "a clip"} if number else {"caption": "a clip"}
            fields = {"mp4": content, "json": label} | ({} if number else {"cls": 7})
            shards.write({"__key__": f"clip{number}", **fields})
    index = build_index(tmp_path / "s")
    assert [index.row(i).shard for i in range(3)] == [*["000000.tar"] * 2, "000001.tar"]
    assert index.keys == ["clip0", "clip1", "clip2"] and index.labels.tolist() == [7, 1, 2]
    assert [index.read(i) for i in range(3)] == videos and not index.bad
    assert not verify([tmp_path / "s"], level="decode", workers=1).bad


@pytest.mark.parametrize("suffix", ["ts", "m4v", "3gp", "flv", "mpg", "ogv", "m2ts", "264", "3g2"])
def test_foreign_shards_may_hold_what_shard_takes(video, tmp_path, suffix):
    path = foreign(tmp_path / "s" / "0.tar", [(f"a.{suffix.upper()}", video), ("a.cls", b"1")])
    index = build_index(path.parent)
    assert index.keys == ["a"] and index.row(0).extension == suffix and index.labels.tolist() == [1]


def test_several_videos_of_one_sample(video, make_video, tmp_path):
    """Fields as webdataset has them: all that follows the first dot."""
    other = make_video(1, frames=10)
    path = foreign(
        tmp_path / "s" / "0.tar",
        [
            *(("ev.left.mp4", video), ("ev.right.mp4", other), ("ev.cls", b"1")),
            *(("fv.left.mp4", video), ("fv.left.cls", b"2"), ("fv.right.mp4", other)),
            *(("gv.mp4", video), ("gv.gif", b"a preview"), ("gv.cls", b"0")),
            *(("hv.mp4", video), ("hv.webm", video), ("hv.cls", b"0")),
        ],
    )
    index = build_index(path.parent)
    assert index.keys == ["ev.left", "ev.right", "fv.left", "fv.right", "gv"]
    assert index.labels.tolist() == [1, 1, 2, -1, 0] and index.frames.tolist() == [8, 10, 8, 10, 8]
    assert [index.read(i) for i in range(2)] == [video, other]
    assert [row.key for row in index.bad] == ["hv"] and "mp4, webm" in index.bad[0].error
    assert found(verify([path], level="decode", workers=1)).keys() == {"hv"}
