"""What JSON beside shards says is checked before it is used: sample, manifest, journal, classes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stmeta._errors import DataError
from stmeta.cli import main
from stmeta.data.ingest.journal import journal_record
from stmeta.data.shards.writer import build_index, read_classes, write_classes
from stmeta.data.verify.inspect import find_sample
from stmeta.data.verify.verifier import verify
from tests.data._shards import pack, sample


@pytest.fixture(scope="module")
def video(make_video) -> bytes:
    return make_video(0, frames=8)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


NESTED = b'{"label": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}"


@pytest.mark.parametrize(
    "record",
    [
        b'{"label": 1, "x": "\\ud800\\u001b[2J"}',
        b'{"label": "\\ud800"}',
        b'{"label": 1e999}',
        b'{"label": [1]}',
        b'{"label": ' + b"9" * 5000 + b"}",
        b"[1]",
        b"\xff\xfe",
        NESTED,
        b'{"label": 1, "x": "' + b"y" * 2**21 + b'"}',
    ],
)
def test_a_sample_is_shown_or_named(video, tmp_path, capsys, record):
    """No traceback, and nothing that moves a terminal's cursor."""
    members = [*sample("a", video), *sample("h", video, cls=None, json=record)]
    path = pack(tmp_path / "train" / "0.tar", members)
    index = build_index(tmp_path / "train")
    assert index.keys[0] == "a" and index.labels[0] == 1
    assert index.keys == ["a", "h"] or [row.key for row in index.bad] == ["h"]
    for options in ((), ("--json",)):
        assert run("inspect", path, "--sample", "h", *options) in (0, 1)
        assert run("inspect", tmp_path / "train", *options) in (0, 1)
        assert run("verify", path, "--workers", 1, *options) in (0, 1)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out and printed.out.encode()


def test_a_key_in_two_shards_is_not_taken_for_one(video, make_video, tmp_path):
    other = make_video(1, frames=10)
    for name, content in (("0", video), ("1", other)):
        pack(tmp_path / f"{name}.tar", sample("a", content, nframes=None))
    build_index(tmp_path)
    with pytest.raises(
        DataError, match=r"2 samples have the key 'a': name the shard, 0.tar, 1.tar"
    ):
        find_sample(tmp_path, "a")
    assert find_sample(tmp_path / "1.tar", "a").video == other


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"options": 3}', b"[" * 99_999, b"\xff"])
def test_a_damaged_manifest(video, tmp_path, capsys, content):
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "1.mp4").write_bytes(video)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ingest.json").write_bytes(content)
    assert run("shard", tmp_path / "v", "--out", tmp_path / "out", "--resume") == 1
    assert "choose another folder" in capsys.readouterr().err


GOOD = {"shards": 1, "size": 512, "next": 3, "bad": [["train", "x.mp4", "empty"]]}


def test_a_damaged_journal():
    line = json.dumps(GOOD) + "\n"
    assert journal_record(line) == GOOD
    for wrong in (
        line[:-1],
        line[:20] + "\n",
        "[]\n",
        "null\n",
        "1\n",
        "[" * 99_999 + "\n",
        *(json.dumps(GOOD | change) + "\n" for change in ({"shards": -1}, {"size": "x"})),
        *(json.dumps(GOOD | change) + "\n" for change in ({"bad": 3}, {"bad": [[1]]})),
    ):
        assert journal_record(wrong) is None, wrong[:60]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'["\\ud800"]', b"[" * 99_999, b"\xff", b"[" + b'"",' * 2**20]
)
def test_damaged_classes(video, tmp_path, capsys, content):
    path = pack(tmp_path / "train" / "0.tar", sample("a", video))
    (tmp_path / "classes.json").write_bytes(content)
    for use in (read_classes, build_index, lambda _: verify([path], workers=1)):
        with pytest.raises(DataError, match=r"classes\.json"):
            use(tmp_path / "train")
    with pytest.raises(DataError, match=r"classes\.json"):
        write_classes(tmp_path, ["a"])
    assert run("index", tmp_path / "train") == 1 and "classes.json" in capsys.readouterr().err
