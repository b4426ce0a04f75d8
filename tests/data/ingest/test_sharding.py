from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from stmeta import cli
from stmeta._errors import DataError
from stmeta._util.workers import ordered_map, process_pool
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.sharding import ingest
from stmeta.data.shards.writer import ShardIndex
from tests.data._videos import remux

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
FAST = ["--short-side", "48", "--workers", "1"]


@pytest.fixture(scope="module")
def clips(make_video) -> list[bytes]:
    return [make_video(i, frames=16) for i in range(6)]


@pytest.fixture(scope="module")
def mixed_folder(clips, make_video, tmp_path_factory) -> Path:
    """30 files in 3 classes: 3 garbage, 2 truncated, 1 empty and 24 good ones."""
    root = tmp_path_factory.mktemp("videos")
    long = make_video(frames=40)
    broken = {
        3: b"this is no video" * 200,
        7: bytes(4000),
        11: os.urandom(9000),
        14: long[: len(long) * 6 // 10],  # index in front: looks whole
        20: remux(long, "mp4")[: len(long) * 6 // 10],  # index at the end: gone
        26: b"",
    }
    for i in range(30):
        path = root / ("bend", "jump", "wave")[i % 3] / f"clip {i:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(broken.get(i, clips[i % 6]))
    (root / "notes.txt").write_text("not for you")
    (root / ".hidden.mp4").write_bytes(b"nor this")
    return root


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def state(out: Path) -> dict[str, bytes]:
    """Every file of a data set that must not depend on how it came to be."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".idx", ".json")
    }


def test_broken_videos_are_named_and_the_rest_is_kept(mixed_folder, tmp_path, capsys):
    assert run("shard", mixed_folder, "--out", tmp_path / "out", *FAST) == 1
    shown = capsys.readouterr().out
    assert "6 could not be stored" in shown
    for number, reason in (
        (3, "not a video"),
        (7, "zeros"),
        (11, "not a video"),
        (14, "truncated: the data ends after"),
        (20, "no usable index"),
        (26, "the file is empty"),
    ):
        line = next(line for line in shown.splitlines() if f"clip {number:02d}.mp4" in line)
        assert reason in line
    index = ShardIndex.open(tmp_path / "out" / "train")
    assert len(index) == 24 and index.bad == [] and index.classes == ["bend", "jump", "wave"]
    assert Counter(index.labels.tolist()) == {0: 9, 1: 9, 2: 6}
    assert index.frames.tolist() == [8] * 24 and index.row(0).fps == 12.5
    for i in range(24):
        assert index.row(i).key.startswith(index.classes[index.labels[i]])


def test_json_and_workers_and_copy(mixed_folder, tmp_path, capsys):
    options = ("--fps", 25, "--gop", 8, "--short-side", 48, "--copy", "--json")
    code = run("shard", mixed_folder, "--out", tmp_path / "out", "--workers", 2, *options)
    report = json.loads(capsys.readouterr().out)
    assert code == 1 and len(report["bad"]) == 6
    assert report["splits"]["train"]["samples"] == 24
    assert report["splits"]["train"]["frames"] == 24 * 16
    index = ShardIndex.open(tmp_path / "out" / "train")
    originals = {path.read_bytes() for path in mixed_folder.rglob("*.mp4")}
    assert all(index.read(i) in originals for i in range(24))
    run("shard", mixed_folder, "--out", tmp_path / "one", "--workers", 1, *options)
    assert state(tmp_path / "one") == state(tmp_path / "out")


class _Stop(Exception):
    pass


def test_resume_gives_the_same_bytes(mixed_folder, tmp_path):
    def go(out: Path, **options: object):
        return ingest(mixed_folder, out, workers=1, shard_mib=0.01, val_fraction=0.3, **options)

    whole = go(tmp_path / "whole")
    assert whole.splits["train"]["shards"] > 2 and whole.splits["val"]["samples"] > 0

    def stop_at(limit: int):
        def progress(split: str, done: int, total: int, bad: int) -> None:
            if (split == "val") * 100 + done >= limit:
                raise _Stop

        return progress

    out = tmp_path / "stopped"
    for limit in (9, 15, 103):
        with pytest.raises(_Stop):
            go(out, resume=limit > 9, progress=stop_at(limit))
        (out / "train" / "000099.tar.tmp").write_bytes(b"of a killed run")
    with open(out / "train" / "shards.jsonl", "a") as file:
        file.write('{"shards": 99, "si')
    first = (out / "train" / "000000.tar").stat().st_mtime_ns
    done = go(out, resume=True)
    assert (out / "train" / "000000.tar").stat().st_mtime_ns == first  # not made again
    assert state(out) == state(tmp_path / "whole")
    assert done.bad == whole.bad and done.splits == whole.splits
    assert not list(out.rglob("*.tmp"))
    assert go(out, resume=True).splits == whole.splits  # nothing left to do


@pytest.mark.slow
def test_resume_after_a_kill(mixed_folder, tmp_path):
    command = [sys.executable, "-m", "stmeta.cli", "shard", str(mixed_folder), "--workers", "1"]
    command += ["--shard-mib", "0.005", "--codec", "vp9", "--short-side", "source"]
    for attempt in range(5):  # on a busy machine a run may end before it is killed
        out = tmp_path / f"out{attempt}"
        process = subprocess.Popen(
            [*command, "--out", str(out)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        limit = time.monotonic() + 180
        while not (out / "train" / "000001.tar").exists() and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            break
    before = list((out / "train").glob("*.tar"))
    assert before and not (out / "train" / "index.parquet").exists()
    assert run(*command[3:], "--out", out, "--resume") == 1
    assert run(*command[3:], "--out", tmp_path / "whole") == 1
    assert state(out) == state(tmp_path / "whole")


def test_resume_refuses_what_would_not_fit(mixed_folder, clips, tmp_path, capsys):
    out, good = tmp_path / "out", tmp_path / "in" / "a" / "1.mp4"
    good.parent.mkdir(parents=True)
    good.write_bytes(clips[0])
    assert run("shard", tmp_path / "in", "--out", out, *FAST) == 0
    assert run("shard", tmp_path / "in", "--out", out, *FAST) == 1
    assert "--resume" in capsys.readouterr().err
    assert run("shard", tmp_path / "in", "--out", out, *FAST, "--resume", "--gop", 4) == 1
    assert "gop: 16 → 4" in capsys.readouterr().err
    good.with_name("2.mp4").write_bytes(clips[1])
    assert run("shard", tmp_path / "in", "--out", out, *FAST, "--resume") == 1
    assert "changed since the start" in capsys.readouterr().err


def test_two_runs_keep_apart(mixed_folder, tmp_path):
    def second(*_: object) -> None:
        with pytest.raises(DataError, match="another run is writing here"):
            ingest(mixed_folder, tmp_path / "out", resume=True)
        raise _Stop

    with pytest.raises(_Stop):
        ingest(mixed_folder, tmp_path / "out", workers=1, progress=second)


def test_wrong_use(tmp_path, capsys):
    assert run("shard", tmp_path / "nothing", "--out", tmp_path / "out") == 1
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert run("shard", tmp_path / "a.mp4", "--out", tmp_path / "out") == 1
    assert "this is a file; give the folder" in capsys.readouterr().err
    assert run("shard", tmp_path, "--out", tmp_path / "out", "--gop", 0) == 2
    assert "gop must be above 0" in capsys.readouterr().err
    assert run("shard", tmp_path, "--codec", "divx", "--out", tmp_path) == 2


def test_a_flat_folder_says_how_labels_are_given(clips, tmp_path, capsys):
    (tmp_path / "1.mp4").write_bytes(clips[0])
    assert run("shard", tmp_path, "--out", tmp_path / "out", *FAST) == 0
    shown = capsys.readouterr().out
    assert "0 classes" in shown and f"the videos lie in {tmp_path} itself" in shown
    assert "VIDEOS/CLASS/" in shown and "--annotations" in shown
    listed = tmp_path / "list.csv"
    listed.write_text("path\n1.mp4\n")
    assert run("shard", tmp_path, "--out", tmp_path / "b", "--annotations", listed, *FAST) == 0
    assert "--label-column" in capsys.readouterr().out


def test_index_command(clips, tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.mp4").write_bytes(clips[0])
    run("shard", tmp_path / "in", "--out", tmp_path / "out", *FAST)
    (tmp_path / "out" / "train" / "index.parquet").unlink()
    capsys.readouterr()
    assert run("index", tmp_path / "out" / "train") == 0
    assert "1 sample, 8 frames, 0 bad" in capsys.readouterr().out
    (tmp_path / "out" / "train" / "x.tar").write_bytes(b"?")
    assert run("index", tmp_path / "out" / "train", "--json") == 1
    assert json.loads(capsys.readouterr().out)["bad"][0]["source"] == "x.tar: "


def test_a_crash_costs_one_item():
    """`eval` stands for a decoder; the third file takes its process down."""
    items = ["1 + 1", "2 + 2", "__import__('os')._exit(1)", "3 + 3", "4 + 4"]
    found = list(ordered_map(eval, items, workers=2))
    assert [item for item, _ in found] == items
    results = [result for _, result in found]
    assert [results[i] for i in (0, 1, 3, 4)] == [2, 4, 6, 8]
    assert isinstance(results[2], DataError) and "crashed" in str(results[2])


def test_a_crash_before_the_next_item_is_handed_out():
    def items():
        yield "__import__('os')._exit(1)"
        limit = time.monotonic() + 60
        while multiprocessing.active_children() and time.monotonic() < limit:
            time.sleep(0.01)  # the pool is marked as broken before its processes are gone
        yield "1 + 1"

    (_, crash), (_, two) = ordered_map(eval, items(), workers=2)
    assert isinstance(crash, DataError) and two == 2


def test_all_workers_are_there_before_the_first_item():
    with process_pool(3) as pool:
        assert len(multiprocessing.active_children()) >= 3
        assert len({pool.submit(os.getpid).result() for _ in range(6)}) <= 3


def test_wagon4(shared_data, tmp_path):
    """A real data set whose CSVs name `stem.npy` for `class/stem.mp4`; four of each split."""
    source = shared_data / "wagon4"
    options = []
    for split in ("train", "val"):
        with open(source / f"{split}_data.csv", newline="") as file:
            rows = list(csv.reader(file))[:5]
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
        options.append(f"{split}={tmp_path / split}.csv")
    assert run("shard", source, "--annotations", *options, "--out", tmp_path / "out", *FAST) == 0
    for split in ("train", "val"):
        index = ShardIndex.open(tmp_path / "out" / split, details=True)
        assert len(index) == 4 and index.bad == []
        assert index.row(0).keyframes[:3] == (0, 16, 32)


def test_a_script_without_a_guard_is_told(mixed_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from stmeta._util.workers import ordered_map\n"
        "print(list(ordered_map(eval, ['1 + 1', '2 + 2'], workers=2)))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=180, env=ENVIRONMENT
    )
    assert done.returncode == 1
    assert "put its work under if __name__" in done.stderr.splitlines()[-1]


def test_odd_file_names(clips, tmp_path):
    folder = tmp_path / "in" / "ä [red]"
    folder.mkdir(parents=True)
    names = [b"\xff\xfe.mp4", b"a\nb.mp4", b"[bold]x.mp4", b"-i.mp4", b"http:x.mp4", b"x%03d.mp4"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(clips[0])
    (folder / os.fsdecode(b"\xfd.mp4")).write_bytes(b"no video")
    assert run("shard", tmp_path / "in", "--out", tmp_path / "out", *FAST) == 1
    index = ShardIndex.open(tmp_path / "out" / "train")
    assert len(index) == len(names) and index.classes == ["ä [red]"]
    assert all(set(key) <= set("abihptx03dold_-redm") | {"/"} for key in index.keys)
    again = ingest(tmp_path / "in", tmp_path / "out", encode=_encode(48), workers=1, resume=True)
    assert [bad.source for bad in again.bad] == ["ä [red]/\udcfd.mp4"]


def _encode(short_side: int) -> EncodeOptions:
    return EncodeOptions(short_side=short_side)
