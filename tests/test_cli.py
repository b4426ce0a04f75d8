"""The command line as a whole; each command's own tests are beside what it calls."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import stmeta
from stmeta import cli
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.shards.writer import EncodedSample, write_shards

# A training loader stops at more than 5 % bad samples.
BAD = ["--max-error-rate", "0.3", "--threads", "1", "--size", "32"]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Eleven clips and one that is garbage."""
    root = tmp_path_factory.mktemp("set")
    pixels = np.random.default_rng(0).integers(0, 255, (11, 12, 48, 64, 3), dtype=np.uint8)
    videos = [encode_frames(clip, 25, gop=4) for clip in pixels] + [b"garbage" * 99]
    write_shards(
        [
            EncodedSample(key=f"c{i}", video=video, extension="mp4", label=0)
            for i, video in enumerate(videos)
        ],
        root / "train",
        check=False,
    )
    return root / "train"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert run(name, "--help") == 0
    first = (cli.command_class(name).__doc__ or "").splitlines()[0]
    assert first in " ".join(capsys.readouterr().out.split())
    assert first == cli.COMMANDS[name]


def test_all_commands_are_listed(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and line in shown for name, line in cli.COMMANDS.items())


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"stmeta {stmeta.__version__}\n"


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "stmeta", "--version"], capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, f"stmeta {stmeta.__version__}\n")


def test_wrong_use(capsys):
    assert run() == run("bogus") == run("index") == run("shard", "--bogus") == 2
    assert "bogus" in capsys.readouterr().err


def test_only_the_command_named_is_loaded():
    """torch and matplotlib take seconds, which a look at a shard should not."""
    code = (
        "import sys; from stmeta import cli\n"
        "try: cli.main(['verify', '/nothing'])\n"
        "except SystemExit: print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_stop_says_how_to_go_on(split, monkeypatch, capsys):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("stmeta.data.verify.verifier.verify", stop)
    assert run("verify", split, "--resume") == 130
    assert capsys.readouterr().err.endswith("stopped; continue with --resume\n")
    assert run("verify", split) == 130
    assert capsys.readouterr().err.endswith("stopped\n")


def test_stream(split, capsys):
    options = ["--epochs", 3, "--batch-size", 4, "--frames", 4, *BAD]
    assert run("stream", split, *options, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 24 and found["batches"] == 6  # two whole batches an epoch
    assert found["frames_per_second"] == pytest.approx(4 * found["clips_per_second"])
    assert found["clips_per_second"] == pytest.approx(24 / found["elapsed_seconds"])
    ms = found["batch_ms"]
    assert 0 < ms["p50"] <= ms["p95"] <= ms["p99"] <= 1000 * found["wait_seconds"]
    assert 0 < found["wait_share"] <= 1 and found["first_batch_seconds"] > 0
    assert sum(found["work_share"].values()) == pytest.approx(1)
    assert found["bound"] == max(found["work_share"], key=found["work_share"].get)
    assert [skip["key"] for skip in found["skips"]] == ["c11"]
    assert list(found["skips"][0]) == ["key", "shard", "reason"]
    assert "not a video" in found["skips"][0]["reason"]


def test_stream_hides_behind_a_training_step(split, capsys):
    options = ["--batch-size", 2, "--frames", 4, *BAD]
    assert run("stream", split, *options, "--batches", 4, "--step-ms", 150, "--every", 0.01) == 1
    lines = capsys.readouterr().out.splitlines()
    head = lines[0].split()
    assert head[:4] == ["time", "clips/s", "frames/s", "wait"]
    rows = [line.split() for line in lines[1:5]]
    assert all(row[0].endswith("s") and row[3].endswith("%") for row in rows)
    assert float(rows[-1][3].rstrip("%")) < 50  # later batches are ready when the step ends
    shown = "\n".join(lines[5:])
    assert "8 in 4 batches" in shown and "000000.tar: c11: not a video" in shown


def test_stream_refuses(split, tmp_path, capsys):
    for options in (("--epochs", 0), ("--every", 0), ("--frames", 0), ("--device", "cuda:77")):
        assert run("stream", split, *options) == 2
    assert run("stream", tmp_path / "nothing") == 1
    assert run("stream", split, "--max-error-rate", 0.01) == 1
    assert "more than max_error_rate" in capsys.readouterr().err
