"""What is worth knowing about good videos stands in the reports of `shard` and `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stmeta import cli
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.sharding import ingest
from stmeta.data.shards.writer import build_index
from stmeta.data.verify.verifier import verify
from tests.data._shards import pack
from tests.data._streams import x264

SAYS = "its times go back or leap 1 times"


@pytest.fixture(scope="module")
def joined() -> bytes:
    """Two recordings, one behind the other: 20 frames, and 25 whose times start again."""
    return x264("mpegts", "bframes=2", 20) + x264("mpegts", "bframes=2:qp=9", 25)


def test_shard_says_so_and_keeps_every_frame(joined, tmp_path, monkeypatch):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "videos" / "a" / "joined.ts").write_bytes(joined)
    (tmp_path / "videos" / "a" / "single.ts").write_bytes(x264("mpegts", "bframes=2", 20))
    options = EncodeOptions(fps=None)
    report = ingest(tmp_path / "videos", tmp_path / "out", encode=options, workers=1)
    assert report.bad == [] and report.splits["train"]["frames"] == 45 + 20
    ((split, source, text),) = report.remarks
    assert (split, source) == ("train", "a/joined.ts") and SAYS in text
    again = ingest(tmp_path / "videos", tmp_path / "out", encode=options, workers=1, resume=True)
    assert again.remarks == report.remarks


def test_verify_says_so(joined, tmp_path, capsys):
    root = tmp_path / "train"
    pack(root / "000000.tar", [("joined.mp4", joined), ("joined.cls", b"0")])
    index = build_index(root)
    assert index.bad == [] and index.row(0).frames == 45
    for level in ("header", "decode"):
        report = verify([root], level=level, workers=1, resume=True)
        assert [entry.key for entry in report.remarks] == ["joined"]
        assert SAYS in report.remarks[0].reason
        assert verify([root], level=level, workers=1, resume=True).remarks == report.remarks


def test_the_command_prints_it(joined, tmp_path, capsys):
    pack(Path(tmp_path) / "train" / "000000.tar", [("joined.mp4", joined), ("joined.cls", b"0")])
    build_index(tmp_path / "train")
    for options, find in (([], str), (["--json"], lambda text: json.loads(text)["remarks"][0])):
        with pytest.raises(SystemExit):
            cli.main(["verify", str(tmp_path / "train"), "--workers", "1", *options])
        assert SAYS in str(find(capsys.readouterr().out))
