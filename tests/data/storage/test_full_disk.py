"""A disk that is full while shards are made."""

from __future__ import annotations

import builtins
import errno
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stmeta import cli
from stmeta._errors import DataError
from stmeta.data.ingest import job
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.sharding import ingest
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(6):
        path = root / "ab"[i % 2] / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_video(i, frames=8))
    (root / "a" / "x.mp4").write_bytes(b"no video")
    return root


def go(videos: Path, out: Path, **options):
    encode = EncodeOptions(short_side=None, fps=None, gop=8)
    return ingest(videos, out, encode=encode, copy=True, shard_mib=0.002, workers=1, **options)


def files(out: Path) -> dict[str, bytes]:
    """Every file of a data set but the index, which holds times; temporary ones too."""
    found = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet")
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


class SmallDisk:
    """Takes so many bytes, over all files that are opened for writing."""

    def __init__(self, room: float) -> None:
        self.room = room

    def open(self, path, mode: str = "r", *args, **options):
        if not set(mode) & set("wa"):
            return builtins.open(path, mode, *args, **options)
        raw = _SmallFile(path, mode.replace("b", ""))
        raw.disk = self
        # As the real one: what is written waits in memory, and fails when it is passed on.
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


class _SmallFile(io.FileIO):
    disk: SmallDisk

    def write(self, content) -> int:
        taken = int(min(len(content), self.disk.room))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.disk.room -= taken
        return super().write(bytes(content[:taken]))


@pytest.fixture
def limit(monkeypatch):
    def set_to(room: float) -> SmallDisk:
        disk = SmallDisk(room)
        for module in ("shards.writer", "ingest.sharding", "ingest.journal"):
            monkeypatch.setattr(f"stmeta.data.{module}.open", disk.open, raising=False)
        return disk

    return set_to


def test_what_was_finished_is_whole_and_resume_ends_the_same(videos, tmp_path, limit):
    unlimited = limit(1e9)
    go(videos, tmp_path / "whole")
    whole, needed = files(tmp_path / "whole"), int(1e9 - unlimited.room)
    assert sum(name.endswith(".tar") for name in whole) >= 3
    # In the first shard, at every place in the second (tar, its end, .idx, journal), at the end.
    first = sum(len(whole[f"train/000000.{kind}"]) for kind in ("tar", "idx"))
    tar = len(whole["train/000001.tar"])
    line = len(whole["train/shards.jsonl"].splitlines()[0])
    begin = first + line + 1
    rooms = (
        0,
        700,
        first - 3,
        begin - 9,
        begin + 700,
        begin + tar - 1,
        begin + tar + 5,
        needed - 1,
    )
    for number, room in enumerate(rooms):
        out = tmp_path / str(number)
        limit(room)
        with pytest.raises(DataError, match=f"{number}: No space left .* make room, .* --resume"):
            go(videos, out)
        for name, content in files(out).items():
            if name != "train/shards.jsonl":
                assert content == whole[name], (room, name)
            else:
                assert whole[name].startswith(content)
        limit(1e9)
        report = go(videos, out, resume=True)
        assert files(out) == whole
        assert len(ShardIndex.open(out / "train")) == 6 and len(report.bad) == 1


def test_full_again_while_it_goes_on(videos, tmp_path, limit):
    """The journal is mended at the start of a run, and must not be lost where that fails."""
    limit(1e9)
    go(videos, tmp_path / "whole")
    whole, out = files(tmp_path / "whole"), tmp_path / "out"
    go(videos, out)
    (out / "train" / "000002.tar").unlink()
    limit(0)
    with pytest.raises(DataError, match="No space left"):
        go(videos, out, resume=True)
    for name in ("train/000000.tar", "train/000001.tar", "train/shards.jsonl"):
        assert files(out)[name] == whole[name]
    limit(1e9)
    go(videos, out, resume=True)
    assert files(out) == whole


def test_no_room_for_the_index(videos, tmp_path, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise FULL

    out = tmp_path / "out"
    arguments = ["shard", str(videos), "--out", str(out), "--workers", "1", "--short-side", "48"]
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fail)
        with pytest.raises(SystemExit, match="1"):
            cli.main(arguments)
    shown = capsys.readouterr().err
    assert f"error: {out}: No space left on device; the shards in {out}" in shown
    assert "Traceback" not in shown
    assert not (out / "train" / "index.parquet").exists()
    with pytest.raises(SystemExit, match="1"):  # one video is broken
        cli.main([*arguments, "--resume"])
    assert len(ShardIndex.open(out / "train")) == 6


def test_no_room_for_temporary_files_is_not_a_broken_video(videos, tmp_path, monkeypatch):
    real, calls = job.transcode, iter(range(99))

    def fail_late(*args, **options):
        if next(calls) == 3:
            raise FULL
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job, "transcode", fail_late)
        with pytest.raises(DataError, match=r"tmp.*: No space left"):
            ingest(videos, tmp_path / "out", workers=1, shard_mib=0.001)
    report = ingest(videos, tmp_path / "out", workers=1, shard_mib=0.001, resume=True)
    assert [bad.source for bad in report.bad] == ["a/x.mp4"]
    assert report.splits["train"]["samples"] == 6


def test_a_new_split_too(make_video, tmp_path, limit):
    def samples():
        for i in range(4):
            video = make_video(i, frames=8)
            yield EncodedSample(key=f"c{i}", video=video, extension="mp4", label=0)

    limit(15_000)
    with pytest.raises(OSError, match="No space left"):
        write_shards(samples(), tmp_path / "train", shard_mib=0.001)
    left = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert left and len(left) % 2 == 0 and not any(name.endswith(".tmp") for name in left)
