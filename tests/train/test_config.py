from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stmeta import recipes
from stmeta.train import parse
from stmeta.train.config import from_json, to_json


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_survives_json(name):
    config = dataclasses.replace(recipes.get(name), data=Path("videos"), out=Path("runs/x"))
    assert from_json(to_json(config)) == config


def test_unknown_field_is_named():
    text = json.loads(to_json(recipes.get("demo")))
    text["tasks"]["pretrain"]["colour"] = 1
    with pytest.raises(ValueError, match=r"PretrainConfig has no field colour.*train again"):
        from_json(json.dumps(text))


def test_unknown_recipe_lists_the_others():
    with pytest.raises(ValueError, match=r"'nope'; choose one of .*demo"):
        recipes.get("nope")


def test_command_line_reaches_every_level():
    config, resume = parse(
        "--fused --stage pretrain classify --pretrain.optim.lr 0.5 --model.dim 48 "
        "--data videos --precision bf16".split()
    )
    assert (config.fused, resume) == (True, False)
    assert config.stage == ("pretrain", "classify")
    assert config.tasks["pretrain"].optim.lr == 0.5
    assert (config.model.dim, config.data, config.precision) == (48, Path("videos"), "bf16")


def test_resume_takes_the_config_of_the_run(tmp_path):
    saved = dataclasses.replace(recipes.get("demo"), seed=7, max_steps=3)
    (tmp_path / "config.json").write_text(to_json(saved))
    config, resume = parse(["--resume", str(tmp_path)])
    assert resume
    assert config == dataclasses.replace(saved, out=tmp_path)
