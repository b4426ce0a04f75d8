"""Runs that stmeta 0.1.0 wrote before tasks had configs of their own.

The archive was made by that version: the config.json of every recipe; four small runs of four steps
each, stopped after two; and the losses of the same runs when they were not stopped.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import pytest

from stmeta import recipes
from stmeta.train import main
from stmeta.train.config import from_json

ARCHIVE = Path(__file__).with_name("runs_of_0.1.0.tar.xz")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("demo", "small_set", "ntm_copy", "dnc_copy", "dnc_recall"),
        *("mann_omniglot", "ntm_omniglot", "lstm_omniglot"),
    ],
)
def test_the_config_of_a_recipe_is_what_the_recipe_gives_now(made, name):
    text = (made / "configs" / f"{name}.json").read_text()
    config, now = from_json(text), recipes.get(name)
    chosen = {task: config.tasks[task] for task in config.order}
    assert chosen == now.tasks and config.order == now.order
    assert (config.model, config.clip) == (now.model, now.clip)
    same = dataclasses.replace(config, tasks=now.tasks, stage=now.stage, data=now.data)
    assert same == now


@pytest.mark.parametrize("name", ["mann", "ntm", "lstm", "copy"])
def test_a_run_continues_as_if_it_had_not_been_stopped(made, name, omniglot):
    out = made / name
    data = [] if name == "copy" else ["--data", str(omniglot)]
    assert main(["--resume", str(out), "--max-steps", "0", *data]) == 0
    (record,) = json.loads((out / "metrics.json").read_text())["stages"].values()
    losses = [item["loss"] for item in record["history"]]
    assert losses == pytest.approx(json.loads((made / "losses.json").read_text())[name], rel=1e-5)
