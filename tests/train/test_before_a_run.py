"""What is wrong with a run is said before its first step, in one line, with the flag to change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stmeta.data.ingest.encode import encode_frames
from stmeta.data.shards.writer import EncodedSample, write_shards
from stmeta.train import main

MODEL = (
    "--model.dim 16 --model.depth 1 --model.heads 1 --model.head-dim 16 --model.frames 4 "
    "--model.image-size 16 --model.decoder.depth 1 --clip.threads 1 --fewshot.ways 2 "
    "--fewshot.instances 2 --fewshot.episodes 4 --fewshot.batch-size 2 --fewshot.test-episodes 2 "
    "--pretrain.batch-size 4 --classify.batch-size 4 --classify-masked.batch-size 4 "
    "--pretrain.evals 1 --classify.evals 1 --fewshot.evals 1 --fewshot.views 1 --max-steps 1"
).split()


@pytest.fixture(scope="module")
def video():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    return encode_frames(pixels.repeat(2, 1).repeat(2, 2), 25, gop=8)


@pytest.fixture
def make(video, tmp_path):
    """Make a data set: a list of labels for each split."""

    def make(folder: str = "data", **splits: list[int]) -> Path:
        root = tmp_path / folder
        root.mkdir()
        names = [f"class{i}" for i in range(10)]
        (root / "classes.json").write_text(json.dumps(names))
        for split, labels in splits.items():
            samples = [
                EncodedSample(key=f"{split}{i}", video=video, extension="mp4", label=label)
                for i, label in enumerate(labels)
            ]
            write_shards(samples, root / split, check=False)
        return root

    return make


def refused(capsys, out: Path, *arguments: object) -> str:
    """What a run says that must not begin, on one line; nothing is left of it."""
    assert main([*MODEL, "--out", str(out), *map(str, arguments)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "error:" in shown and "Traceback" not in shown
    assert not list(out.rglob("last.pt")) and not list(out.rglob("config.json"))
    return shown


GOOD = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("splits", "arguments", "message"),
    [
        ({"train": GOOD, "heldout": GOOD}, [], "pretrain needs the split 'val'"),
        ({"train": GOOD, "val": GOOD}, [], "fewshot needs the split 'heldout'"),
        ({"train": GOOD, "val": GOOD, "heldout": [2, 2, 3]}, [], "--fewshot.instances 2"),
        ({"train": GOOD, "val": GOOD, "heldout": GOOD}, ["--fewshot.ways", 3], "--fewshot.ways 3"),
        ({"train": [1] * 4, "val": GOOD}, ["--stage", "pretrain", "classify"], "1 (class1)"),
        ({"train": [-1] * 4, "val": GOOD}, ["--stage", "pretrain", "classify"], "no labels"),
        ({"train": GOOD, "val": [-1, -1]}, ["--stage", "pretrain", "classify"], "no labels"),
        ({"train": GOOD, "val": [5, 6]}, ["--stage", "pretrain", "classify"], "class5, class6"),
        ({"train": GOOD, "val": GOOD}, ["--stage", "classify"], "run the task 'pretrain' first"),
        ({"train": GOOD, "val": GOOD}, ["--stage", "classify", "pretrain"], "put pretrain before"),
        ({"train": GOOD, "val": GOOD}, ["--stage", "pretrain", "pretrain"], "--stage must name"),
        ({"train": GOOD, "val": GOOD}, ["--clip.repeats", 3], "multiple of repeats = 3"),
    ],
)
def test_data_that_do_not_do_for_a_stage(make, tmp_path, capsys, splits, arguments, message):
    root = make(**splits)
    assert message in refused(capsys, tmp_path / "run", "--data", root, *arguments)


def test_a_split_given_as_the_data_set(make, tmp_path, capsys):
    root = make(train=GOOD, val=GOOD)
    said = refused(capsys, tmp_path / "run", "--data", root / "train")
    assert "holds shards itself; did you mean --data" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nosuch"], "'nosuch'; choose one of"),
        (["--data", "/no/where"], "the folder /no/where does not exist"),
        (["--save-every", 0], "--save-every must be 1 or more, got 0"),
        (["--save-every", -5], "--save-every must be 1 or more"),
        (["--max-steps", -1], "--max-steps must be 0 or more"),
        (["--pretrain.epochs", 0], "--pretrain.epochs must be above 0"),
        (["--pretrain.epochs", "nan"], "--pretrain.epochs must be a finite number"),
        (["--classify-masked.optim.lr", "-1"], "--classify-masked.optim.lr must be above 0"),
        (["--fewshot.model.memory.rows", 0], "--fewshot.model.memory.rows must be 1 or more"),
        (["--classify.evals", 0], "--classify.evals must be 1 or more"),
        (["--stage", "nosuch"], "--stage must be of the tasks pretrain, classify"),
        (["--clip.frames", 4], "--clip.frames has no effect"),
    ],
)
def test_settings_that_no_run_can_have(tmp_path, capsys, arguments, message):
    assert message in refused(capsys, tmp_path / "run", *arguments)


def test_a_recipe_for_your_own_videos_asks_for_them(tmp_path, capsys):
    assert main(["--recipe", "small_set", "--out", str(tmp_path / "run")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "pretrain needs videos; pass --data FOLDER" in shown and "--data motions" in shown
    assert not (tmp_path / "run").exists()


def test_memory_settings_are_checked_too(tmp_path, capsys):
    for flag, value in (
        ("--sequences.batch-size", 0),
        ("--sequences.memory.rows", -1),
        ("--sequences.test-lengths", 0),
    ):
        code = main(["--recipe", "ntm_copy", "--out", str(tmp_path / "run"), flag, str(value)])
        assert code == 1
        assert f"{flag} must be" in capsys.readouterr().out


def test_a_gpu_that_is_not_there(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root = make(train=GOOD, val=GOOD)
    shown = refused(capsys, tmp_path / "run", "--data", root, "--device", "cuda")
    assert "--device cuda, but torch finds no GPU" in shown


def test_a_small_set_and_long_clips_train_and_are_named(make, tmp_path, caplog):
    root = make(train=[0, 1, 1], val=[0, 1, 7])
    arguments = ["--stage", "pretrain", "classify", "--model.frames", "12", "--data", str(root)]
    assert main([*MODEL, *arguments, "--out", str(tmp_path / "run")]) == 0
    shown = caplog.text
    assert "3 of 3 videos are shorter than a clip" in shown
    assert "3 videos are fewer than a batch of 4" in shown
    assert "1 videos are of classes that" in shown and "(class7)" in shown


def test_batches_without_labels_teach_nothing_and_stop_nothing(make, tmp_path):
    root = make(train=[0, 1, *[-1] * 18], val=GOOD)
    arguments = ["--stage", "classify", "--classify.init", "scratch", "--max-steps", "5"]
    out = tmp_path / "run"
    assert main([*MODEL, *arguments, "--data", str(root), "--out", str(out)]) == 0
    history = json.loads((out / "metrics.json").read_text())["stages"]["classify"]["history"]
    empty = [row for row in history if "top1" not in row]
    assert 0 < len(empty) < 5 and all(row["loss"] == 0 for row in empty)
    assert any(row["loss"] > 0 for row in history)


def test_resume_with_other_classes_or_another_model(make, tmp_path, capsys):
    root, out = make(train=GOOD, val=GOOD), tmp_path / "run"
    arguments = ["--stage", "classify", "--classify.init", "scratch", "--data", str(root)]
    assert main([*MODEL, *arguments, "--out", str(out), "--max-steps", "2"]) == 0

    def resumed(*more: str) -> str:
        assert main(["--resume", str(out), *more]) == 1
        shown = " ".join(capsys.readouterr().out.split())
        assert "error:" in shown
        return shown

    assert "another --model (depth 1, now 2)" in resumed("--model.depth", "2")
    names = root / "classes.json"
    names.write_text(json.dumps([f"other{i}" for i in range(10)]))
    assert "the classes have other names" in resumed()
    other = make("more", train=[0, 1, 2, 2], val=GOOD)
    assert "another model" in resumed("--data", str(other))


@pytest.mark.parametrize("module", ["stmeta.train", "stmeta.cli"])
def test_a_pipe_that_ends_early(module):
    command = f'"{sys.executable}" -m {module} --help | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert done.stderr == b"" and done.returncode in (0, 141)
