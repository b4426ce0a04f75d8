"""Runs of a memory alone, from the command line: sequences of bits, and episodes of characters."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stmeta.data.episodes.images import ImageSource
from stmeta.memory import CellConfig, DNCConfig, LSTMConfig, MANNConfig, NTMConfig
from stmeta.models.few_shot import FewShotClassifierConfig
from stmeta.models.sequence import SequenceModel
from stmeta.train import RunConfig, main
from stmeta.train import run as training
from stmeta.train.tasks._episodes import EpisodeTask
from stmeta.train.tasks.episodes import OmniglotConfig


def options(task: str, text: str) -> list[str]:
    return [f"--{task}.{word[2:]}" if word.startswith("--") else word for word in text.split()]


COPY = [
    *"--recipe ntm_copy --fused --save-every 2".split(),
    *options(
        "sequences",
        "--steps 6 --batch-size 4 --max-length 4 --test-lengths 3 5 --evals 2 --memory.hidden 12 "
        "--memory.rows 8 --memory.width 6",
    ),
]
EPISODES = options(
    "episodes",
    "--steps 4 --batch-size 3 --ways 3 --instances 4 --evals 1 --test-episodes 4 --image-size 8 "
    "--model.memory.hidden 10",
)
ROWS = options("episodes", "--model.memory.rows 8 --model.memory.width 6")
ENCODER = options("episodes", "--model.encoder.widths 8 --model.encoder.filters 4 6")


def run(arguments, out, *more):
    return main([*arguments, "--out", str(out), *more])


def test_copy_leaves_weights_metrics_and_pictures(tmp_path, capsys):
    assert run(COPY, tmp_path / "run") == 0
    assert "wrong bits of" in " ".join(capsys.readouterr().out.split())
    record = json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["sequences"]
    assert record["steps"] == 6 and len(record["evals"]) == 2
    assert 0 <= record["final"]["wrong_bits_5"] <= 5 * 8
    for name in ("curves.png", "length_3.png", "length_5.png", "weights.png"):
        assert (tmp_path / "run" / name).read_bytes()[:4] == b"\x89PNG"


def test_resumed_run_has_the_same_bits(tmp_path):
    assert run(COPY, tmp_path / "whole") == 0
    assert run(COPY, tmp_path / "cut", "--max-steps", "2") == 0
    config = tmp_path / "cut/config.json"
    config.write_text(config.read_text().replace('"max_steps": 2', '"max_steps": 0'))
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    ours, theirs = (
        load_file(tmp_path / name / "sequences/last.safetensors") for name in ("cut", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fused_and_eager_learn_the_same(tmp_path):
    eager = [word for word in COPY if word != "--fused"]
    assert run(COPY, tmp_path / "fused") == 0
    assert run(eager, tmp_path / "eager") == 0
    a, b = (
        json.loads((tmp_path / name / "metrics.json").read_text())["stages"]["sequences"]["history"]
        for name in ("fused", "eager")
    )
    assert [item["loss"] for item in a] == pytest.approx([item["loss"] for item in b], rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("mann_omniglot", [*ROWS, *ENCODER[:2], "12", "8", ENCODER[2]]),
        ("mann_omniglot", [*ROWS, *ENCODER]),
        ("santoro_omniglot", ROWS),
        ("lstm_omniglot", ENCODER),
        ("ntm_omniglot", [*ROWS, *ENCODER]),
    ],
)
def test_omniglot(recipe, more, omniglot, tmp_path, capsys):
    out = tmp_path / "run"
    more = ["--fused", "--data", str(omniglot), *more]
    assert run(["--recipe", recipe, *EPISODES], out, *more) == 0
    assert "new classes," in " ".join(capsys.readouterr().out.split())
    record = json.loads((out / "metrics.json").read_text())["stages"]["episodes"]
    assert {f"instance_{k}" for k in range(1, 5)} <= record["final"].keys()
    pictures = ["instances.png"] if recipe.startswith("lstm") else ["instances.png", "weights.png"]
    for name in pictures:
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_a_baseline_without_an_encoder(omniglot, tmp_path):
    task = OmniglotConfig(
        model=FewShotClassifierConfig.plain(LSTMConfig(hidden=10)),
        **{"steps": 2, "ways": 3, "instances": 4, "evals": 1, "test_episodes": 4, "image_size": 8},
    )
    config = RunConfig(out=tmp_path / "run", data=omniglot, tasks={"episodes": task})
    records = training.run(config, resume=False, console=Console(file=io.StringIO()))
    assert records["episodes"]["result"].startswith("new classes, accuracy at episode 1: ")


def test_a_bad_loss_names_its_episode(omniglot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        EpisodeTask, "loss", lambda self, batch, generator: (torch.tensor(torch.nan), 1, {})
    )
    arguments = ["--recipe", "lstm_omniglot", *EPISODES, "--data", str(omniglot)]
    assert run(arguments, tmp_path / "run") == 1
    assert "the loss is nan at step 0; episodes: Made/train" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_bad_image_is_named_before_it_spreads(tmp_path, omniglot, capsys, monkeypatch):
    made, batches = ImageSource.start, iter(range(99))

    def broken(self, samples, seeds):
        x, keys = made(self, samples, seeds)()
        if len(x) == 3 and next(batches) == 2:  # of training
            x[1, 2, 0] = torch.nan
        return lambda: (x, keys)

    monkeypatch.setattr(ImageSource, "start", broken)
    arguments = ["--recipe", "mann_omniglot", *EPISODES, "--data", str(omniglot)]
    assert run([*arguments, *ROWS, *ENCODER], tmp_path / "run") == 1
    message = " ".join(capsys.readouterr().out.split())
    assert "got NaN or infinite values in Made/train" in message and message.count("step 2 of") == 1
    saved = torch.load(tmp_path / "run/episodes/last.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(x.isfinite().all() for x in saved["model"].values())


def test_omniglot_is_not_shipped(capsys):
    assert main(["--recipe", "mann_omniglot"]) == 1
    assert "pass --data FOLDER" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "memory", [MANNConfig(), NTMConfig(), DNCConfig(), LSTMConfig()], ids=lambda c: type(c).__name__
)
def test_every_memory_fits(memory: CellConfig):
    model = SequenceModel(memory.build(7), 3)
    assert model(torch.randn(2, 4, 7)).shape == (2, 4, 3)
