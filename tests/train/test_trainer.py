"""The trainer on a toy stage: schedules, exact resume, interruption, bad losses."""

from __future__ import annotations

import dataclasses
import io
import os
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from stmeta.train.config import RunConfig
from stmeta.train.optim import AdamWConfig, OptimConfig
from stmeta.train.tasks._base import TaskConfig
from stmeta.train.trainer import NonFiniteLossError, Trainer, step_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(TaskConfig):
    optim: OptimConfig = dataclasses.field(default_factory=lambda: AdamWConfig(lr=0.05))
    evals: int = 2

    def build(self, context):
        return Toy()


class Toy:
    """Linear regression with dropout on batches that are a function of their position."""

    name, unit, steps, config = "toy", "clips", 20, ToyConfig()
    metric, sign, console_metrics = "score", 1, ("score",)

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.position = 0
        self.poison = self.stop = -1

    def batches(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            self.position += 1
            yield torch.randn(6, 4, generator=generator)

    def data_state(self):
        return {"position": self.position}

    def load_data_state(self, state):
        self.position = state["position"]

    def keys(self, batch):
        return [f"clip{i}" for i in range(len(batch))]

    def loss(self, batch, generator):
        if self.position - 1 == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        noise = torch.rand(len(batch), 1, generator=generator)
        loss = (self.model(batch) - batch.sum(1, keepdim=True) - noise).square().mean()
        return loss * (float("nan") if self.position - 1 == self.poison else 1), len(batch), {}

    def evaluate(self):
        return {"score": float(self.position)}


def trainer(stage, out):
    config = RunConfig(out=out, save_every=7)
    console = Console(file=io.StringIO())
    return Trainer(stage, config, device=torch.device("cpu"), console=console)


def weights(stage):
    return torch.cat([p.detach().flatten() for p in stage.model.parameters()])


def test_resume_is_bit_identical(tmp_path):
    whole = Toy()
    record = trainer(whole, tmp_path / "whole").run(resume=False)
    stopped = Toy()
    stopped.poison = 11  # stops between two checkpoints (7 and 14)
    with pytest.raises(NonFiniteLossError):
        trainer(stopped, tmp_path / "part").run(resume=False)
    resumed = Toy()
    again = trainer(resumed, tmp_path / "part").run(resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert again["history"] == record["history"]
    assert again["evals"] == record["evals"]


def test_resume_of_a_finished_stage_changes_nothing(tmp_path):
    first = Toy()
    trainer(first, tmp_path).run(resume=False)
    second = Toy()
    record = trainer(second, tmp_path).run(resume=True)
    assert torch.equal(weights(first), weights(second))
    assert record["steps"] == 20
    assert second.position == 20


def test_files_are_whole_and_weights_load(tmp_path):
    stage = Toy()
    trainer(stage, tmp_path).run(resume=False)
    names = {p.name for p in (tmp_path / "toy").iterdir()}
    assert {"last.pt", "last.safetensors", "best.safetensors"} <= names
    assert any(n.startswith("events") for n in names)
    assert not any(n.endswith(".tmp") for n in names)
    stage.model.load_state_dict(load_file(tmp_path / "toy" / "last.safetensors"))


def test_bad_loss_names_step_clips_and_remedy(tmp_path):
    stage = Toy()
    stage.poison = 3
    with pytest.raises(NonFiniteLossError, match=r"nan at step 3; clips: clip0, .*last\.pt.*lower"):
        trainer(stage, tmp_path).run(resume=False)
    state = torch.load(tmp_path / "toy" / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    stage = Toy()
    stage.stop = 4
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(stage, tmp_path).run(resume=False)
    assert torch.load(tmp_path / "toy" / "last.pt", weights_only=True)["step"] == 5
    assert signal.getsignal(signal.SIGINT) is handler
    whole, resumed = Toy(), Toy()
    trainer(whole, tmp_path / "whole").run(resume=False)
    trainer(resumed, tmp_path).run(resume=True)
    assert torch.equal(weights(whole), weights(resumed))


def test_learning_rate_shape():
    optim = AdamWConfig(lr=1.0, min_lr=0.1, warmup=0.1)
    rates = [optim.learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0) == rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.102
    assert optim.learning_rate(55, 100) == pytest.approx(0.55)  # half way down the cosine


def test_decay_and_layer_groups():
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 2)
            self.table = nn.Parameter(torch.zeros(1, 3))

        def layer_of(self, name):
            return (0 if name.startswith("low") else 2), 2

        def no_decay(self):
            return {"table"}

    model = Layered()
    groups = AdamWConfig(weight_decay=0.3, layer_decay=0.5).build(model).param_groups
    found = {
        id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert found[id(model.low.weight)] == (0.25, 0.3)
    assert found[id(model.low.bias)] == (0.25, 0.0)
    assert found[id(model.high.weight)] == (1.0, 0.3)
    assert found[id(model.table)] == (1.0, 0.0)


def test_step_seeds_differ():
    names = ("pretrain", "classify")
    seeds = {step_seed(s, n, t) for s in range(3) for n in names for t in range(99)}
    assert len(seeds) == 3 * 2 * 99


def test_max_steps_shortens_a_stage(tmp_path):
    stage = Toy()
    run = trainer(stage, tmp_path)
    config = dataclasses.replace(run.config, max_steps=4)
    run = Trainer(stage, config, device=torch.device("cpu"), console=run.console)
    assert run.run(resume=False)["steps"] == 4
