"""Whole runs from the command line, on real encoded clips."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import torch
from safetensors.torch import load_file

from stmeta.train import main

STAGES = ("pretrain", "classify", "fewshot")
SMALL = (
    "--model.dim 32 --model.depth 2 --model.heads 2 --model.head-dim 16 --clip.stride 2 "
    "--pretrain.batch-size 8 --classify.batch-size 8 --pretrain.evals 1 --classify.evals 1 "
    "--fewshot.ways 3 --fewshot.instances 4 --fewshot.batch-size 4 --fewshot.episodes 40 "
    "--fewshot.test-episodes 10 --fewshot.evals 1 --fewshot.views 1 --save-every 1 "
    f"--stage {' '.join(STAGES)}"
).split()


@pytest.fixture(scope="module")
def data(tiny_motions):
    return tiny_motions


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(command(data, out), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def command(data, out, *more):
    arguments = [*SMALL, "--fused", "--max-steps", "6", "--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "stmeta.train", *arguments, *more]


def test_run_leaves_what_the_documents_say(whole):
    out, printed = whole
    for name in ("config.json", "metrics.json", "curves.png", "reconstruction.png"):
        assert (out / name).stat().st_size > 0
    for name in ("confusion.png", "fewshot.png"):
        assert (out / name).stat().st_size > 5000
    for stage in STAGES:
        names = {p.name for p in (out / stage).iterdir()}
        assert {"last.pt", "last.safetensors", "best.safetensors"} <= names
        assert any(name.startswith("events.out") for name in names)
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["stages"]) == list(STAGES)
    for record in metrics["stages"].values():
        assert len(record["history"]) == record["steps"] == 6
        assert 0 <= record["data_wait_share"] <= 1
        assert record.get("skipped", []) == []
    assert 0 <= metrics["stages"]["classify"]["final"]["macro_f1_low"] <= 1
    assert "result on unseen data" in printed
    assert not list(out.rglob("*.tmp"))


KILLED = """
import os, signal, sys
from stmeta.train import main

replace, stage, saves, written = os.replace, sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"

def replace_or_die(source, target):
    global saves
    if str(target).endswith(f"{stage}/last.pt"):
        saves -= 1
        if saves == 0:
            if written:
                replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed_is_bit_identical(data, whole, tmp_path):
    """At the third save, once it is done or just before."""
    out = tmp_path / "killed"
    for stage, written in zip(STAGES, (True, False, True), strict=True):
        resume = ["--resume"] if (out / "config.json").exists() else []
        arguments = command(data, out, *resume)
        assert arguments[1:3] == ["-m", "stmeta.train"]
        program = [arguments[0], "-c", KILLED, stage, "3", str(written), *arguments[3:]]
        done = subprocess.run(program, capture_output=True, text=True, timeout=600)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        assert (out / stage / "last.pt.tmp").exists() != written
        step = torch.load(out / stage / "last.pt", weights_only=True)["step"]
        assert 0 < step < 6
    done = subprocess.run(command(data, out, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in STAGES:
        first, second = (
            load_file(folder / stage / "last.safetensors") for folder in (whole[0], out)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), stage


def test_fused_and_eager_give_the_same_losses(data, tmp_path):
    losses = {}
    for flag in ("--fused", "--no-fused"):
        out = tmp_path / flag.strip("-")
        arguments = [*SMALL, "--stage", "pretrain", "classify", flag, "--max-steps", "20"]
        assert main([*arguments, "--data", str(data), "--out", str(out)]) == 0
        stages = json.loads((out / "metrics.json").read_text())["stages"]
        losses[flag] = [h["loss"] for record in stages.values() for h in record["history"]]
    assert len(losses["--fused"]) == 40
    assert losses["--fused"] == pytest.approx(losses["--no-fused"], rel=1e-4)


def test_broken_samples_in_a_shard_do_not_stop_a_run(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    with tarfile.open(copy / "train" / "000000.tar", "a") as shard:
        for number, video in enumerate((b"garbage" * 99, b"", b"\0\0\0\x18ftypmp42" + b"\0" * 50)):
            for suffix, content in (("mp4", video), ("cls", b"0")):
                member = tarfile.TarInfo(f"broken{number}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    out = tmp_path / "run"
    arguments = [*SMALL, "--stage", "pretrain", "--max-steps", "14", "--fused"]  # over an epoch
    assert main([*arguments, "--data", str(copy), "--out", str(out)]) == 0
    record = json.loads((out / "metrics.json").read_text())["stages"]["pretrain"]
    assert record["steps"] == 14
    skipped = {skip["key"]: skip["reason"] for skip in record["skipped"]}
    assert set(skipped) == {"broken0", "broken1", "broken2"}
    assert all(skipped.values())


def test_second_run_never_overwrites(data, whole, capsys):
    out, _ = whole
    before = (out / "metrics.json").read_bytes()
    assert main([*SMALL, "--data", str(data), "--out", str(out)]) == 1
    assert "already holds a run" in capsys.readouterr().out
    assert (out / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "the folder nowhere does not exist"),
        (["--stage", "classify"], "run the task 'pretrain' first"),
        (["--stage", "fewshot"], "run the task 'classify' first"),
    ],
)
def test_errors_say_what_to_do(data, tmp_path, capsys, arguments, message):
    base = [*SMALL, "--data", str(data), "--out", str(tmp_path / "run"), *arguments]
    assert main(base) == 1
    assert message in " ".join(capsys.readouterr().out.split())
