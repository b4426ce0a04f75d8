"""Shards that others wrote, or spliced by hand."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from pathlib import Path

import pytest

from stmeta.data.shards.writer import ShardIndex, build_index, write_classes

CLASSES = ["bend", "jump", "wave"]


@pytest.fixture(scope="module")
def videos(make_video) -> list[bytes]:
    return [make_video(i, frames=8 + i) for i in range(5)]


def put(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    tar.addfile(entry, io.BytesIO(content))


def foreign(folder: Path, members: list[tuple[str, bytes]], name: str = "a.tar") -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            put(tar, *member)
    return folder


def test_foreign_samples(videos, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    split = foreign(
        tmp_path / "s",
        [
            ("jump/1.cls", b"1\n"),
            ("jump/1.MP4", videos[0]),
            ("jump/1.pyd", pickle.dumps(Bomb())),
            ("./2.json", b'{"label": 2}'),
            ("./2.mp4", videos[1]),
            ("../../3.mp4", videos[2]),
            (f"{'long' * 60}.mp4", videos[3]),
            ("5.cls", b"wave"),
            ("5.cam.mp4", videos[4]),
        ],
    )
    write_classes(split, CLASSES)
    index = ShardIndex.open(split)
    assert index.keys == ["jump/1", "2", "../../3", "long" * 60, "5"] and index.bad == []
    assert index.labels.tolist() == [1, 2, -1, -1, 2]
    assert [index.read(i) for i in range(5)] == videos[:5]
    assert not (tmp_path / "exploded").exists()


def test_foreign_members_that_are_apart_or_concatenated(videos, tmp_path):
    split = foreign(tmp_path / "s", [("1.mp4", videos[0]), ("2.mp4", videos[1]), ("1.cls", b"1")])
    foreign(tmp_path / "t", [("3.mp4", videos[2]), ("1.mp4", videos[3])])
    with open(split / "a.tar", "ab") as file:  # cat: the end marks of the first stay inside
        file.write((tmp_path / "t" / "a.tar").read_bytes())
    index = build_index(split)
    assert index.keys == ["2", "3"]
    assert [(row.key, row.error) for row in index.bad] == [
        ("1", "the key occurs more than once in the shard")
    ]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.jpg", b"x"), ("1.cls", b"1")], "needs one of mp4.*found jpg, cls"),
        ([("1.mp4", b"?"), ("1.webm", b"?")], "needs one of"),
        ([("1.mp4", b"x" * 999), ("1.cls", b"1")], "not a video"),
        ([("1.mp4", b""), ("1.cls", b"1")], "empty"),
        ([("1.mp4", None), ("1.cls", b"9")], "label 9 has no name among 3"),
        ([("1.mp4", None), ("1.cls", b"-2")], "label -2 has no name"),
        ([("1.mp4", None), ("1.cls", b"dance")], "'dance' is neither a number nor a known class"),
        ([("1.mp4", None), ("1.json", b"{" * 100)], "json cannot be read"),
        ([("1.mp4", None), ("1.json", b"[" * 100_000)], "json cannot be read"),
        ([("1.mp4", None), ("1.cls", b"1" * 2**21)], "which is no label"),
    ],
)
def test_foreign_samples_that_are_broken(videos, tmp_path, members, reason):
    filled = [(name, videos[0] if content is None else content) for name, content in members]
    split = foreign(tmp_path / "s", [("0.mp4", videos[1]), *filled, ("2.mp4", videos[2])])
    write_classes(split, CLASSES)
    index = build_index(split)
    assert index.keys == ["0", "2"]
    assert len(index.bad) == 1 and index.bad[0].key == "1"
    assert re.search(reason, index.bad[0].error)


def test_links_and_false_sizes(videos, tmp_path):
    split = tmp_path / "s"
    split.mkdir()
    with tarfile.open(split / "a.tar", "w") as tar:
        put(tar, "0.mp4", videos[0])
        put(tar, "1.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        put(tar, "2.mp4", type=tarfile.LNKTYPE, linkname="0.mp4")
        put(tar, "3.mp4", type=tarfile.FIFOTYPE)
        put(tar, "4.mp4", videos[1])
    with open(split / "a.tar", "ab") as file:
        entry = tarfile.TarInfo("5.mp4")
        entry.size = 7 * 2**30
        file.write(entry.tobuf() + b"much less")
    index = build_index(split)
    assert index.keys == ["0", "4"]
    errors = {row.key: row.error for row in index.bad}
    assert set(errors) == {"1", "2", "5"}  # a pipe is no member of anything
    assert "link" in errors["1"] and "link" in errors["2"] and "ends inside" in errors["5"]
