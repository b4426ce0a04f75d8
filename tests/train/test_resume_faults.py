"""--resume on what is damaged, foreign or hostile: one line that says so, never a traceback."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stmeta import recipes
from stmeta._errors import DataError
from stmeta.train import checkpoint, main
from stmeta.train.run_folder import claimed, write_config

TINY = (
    "--recipe ntm_copy --save-every 2 --sequences.steps 4 --sequences.evals 1 "
    "--sequences.test-lengths 2 --sequences.max-length 2 --sequences.batch-size 2 "
    "--sequences.memory.rows 4 --sequences.memory.width 3 --sequences.memory.hidden 5"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a run, whose files a test may spoil."""
    out = tmp_path / "run"
    for path in finished.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".pt", ".safetensors"):
            (out / path.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (out / path.relative_to(finished)).write_bytes(path.read_bytes())
    return out


def resumed(capsys, out: Path, *more: str) -> str:
    assert main(["--resume", str(out), *more]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "error:" in shown
    return shown


def test_a_run_that_is_whole_goes_on(run):
    assert main(["--resume", str(run), "--sequences.steps", "6"]) == 0
    record = json.loads((run / "metrics.json").read_text())["stages"]["sequences"]
    assert record["steps"] == 6


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["STMETA_EVIL"],)


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def test_a_file_that_is_no_checkpoint(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STMETA_EVIL", str(tmp_path / "evil"))
    path = run / "sequences" / "last.pt"
    whole = path.read_bytes()
    other = io.BytesIO()
    torch.save([1, 2], other)
    cases = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "cut by a byte": whole[:-1],
        "text": b"no checkpoint\n" * 50,
        "nul": bytes(len(whole)),
        "other": other.getvalue(),
        "pickle": pickle.dumps({"step": 1}),
        "evil": zipped(("a/data.pkl", pickle.dumps(Evil())), ("a/version", b"3\n")),
        "bomb": zipped(("a/data.pkl", bytes(1 << 22)), how=zipfile.ZIP_DEFLATED),
    }
    for name, content in cases.items():
        path.write_bytes(content)
        shown = resumed(capsys, run)
        assert "last.pt" in shown and "begin this task again" in shown, name
    assert not (tmp_path / "evil").exists()
    path.unlink()
    path.mkdir()
    assert "is no file" in resumed(capsys, run)
    path.rmdir()
    os.mkfifo(path)
    assert "is no file" in resumed(capsys, run)


def test_every_flipped_byte_is_found_or_changes_nothing(run):
    path = run / "sequences" / "last.pt"
    whole, was = path.read_bytes(), checkpoint.load_state(path)
    found, draw = 0, random.Random(0)
    for _ in range(150):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            now = checkpoint.load_state(path)
        except DataError:
            found += 1
            continue
        assert now["step"] == was["step"] and now["history"] == was["history"]
        for name, tensor in was["model"].items():
            assert torch.equal(now["model"][name], tensor)
    assert found > 100


def test_a_flipped_byte_in_weights_is_found(run):
    path = run / "sequences" / "last.safetensors"
    whole = path.read_bytes()
    assert checkpoint.load_weights(path).keys() == load_file(path).keys()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DataError, match="does not have the hash"):
        checkpoint.load_weights(path)
    path.write_bytes(whole[:99])
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"step": -3}, "holds -3 as 'step'"),
        (lambda s: s | {"step": 99}, "steps of history at step 99"),
        (lambda s: s | {"step": "many"}, "as 'step'"),
        (lambda s: s | {"step": True}, "as 'step'"),
        (lambda s: s | {"best": None}, "as 'best'"),
        (lambda s: s | {"history": [None] * 4}, "as 'history'"),
        (lambda s: s | {"history": [{"step": 1}] * 4}, "as 'history'"),
        (lambda s: s | {"data": {"epoch": 0, "position": -1}}, "position -1"),
        (lambda s: s | {"data": {"epoch": 1 << 70, "position": 0}}, "epoch 118"),
        (lambda s: s | {"data": {}}, "other data"),
        (lambda s: s | {"model": {}}, "another model"),
        (lambda s: s | {"model": [1]}, "as 'model'"),
        (lambda s: s | {"optimizer": {}}, "as 'optimizer'"),
        (lambda s: {k: v for k, v in s.items() if k != "optimizer"}, "has no 'optimizer'"),
    ],
)
def test_a_state_that_no_run_wrote(run, capsys, change, message):
    path = run / "sequences" / "last.pt"
    torch.save(change(checkpoint.load_state(path)), path)
    assert message in resumed(capsys, run)


def test_moments_of_another_model(run, capsys):
    path = run / "sequences" / "last.pt"
    state = checkpoint.load_state(path)
    for spoil in ({"exp_avg": torch.zeros(1, 2, 3)}, {"exp_avg": 3}, {"step": None}):
        spoilt = copy.deepcopy(state)
        spoilt["optimizer"]["state"][0] |= spoil
        torch.save(spoilt, path)
        assert "state of the optimizer" in resumed(capsys, run)


def test_another_model_is_named(run, capsys):
    shown = resumed(capsys, run, "--sequences.memory.hidden", "6")
    assert "another --sequences.memory (hidden 5, now 6)" in shown and "--out" in shown
    other = ["--recipe", "dnc_copy", "--resume", "--out", str(run)]
    assert main(other) == 1
    assert "another --sequences.memory (NTMConfig, now DNCConfig)" in " ".join(
        capsys.readouterr().out.split()
    )
    path = run / "sequences" / "last.pt"
    state = checkpoint.load_state(path)
    name = next(iter(state["model"]))
    for tensor in (torch.zeros(2, 3), state["model"][name].to(torch.complex64)):
        torch.save(state | {"model": state["model"] | {name: tensor}}, path)
        shown = resumed(capsys, run)
        assert "another model" in shown and "there and float32" in shown and "--out" in shown


def test_a_run_of_another_recipe(run, capsys):
    assert main(["--recipe", "demo", "--resume", "--out", str(run)]) == 1
    assert "of recipe 'ntm_copy'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "must hold fields"),
        ("[" * 100_000, "no JSON"),
        ("null", "must hold fields"),
        ('{"colour": 1}', "no field colour"),
        ('{"seed": "many"}', "seed must be int"),
        ('{"seed": 1.5}', "seed must be int"),
        ('{"model": 3}', "model must hold fields"),
        ('{"model": {"dim": true}}', "model.dim must be int"),
        ('{"model": {"frames": 3}}', "multiple of tubelet"),
        ('{"stage": ["nosuch"]}', "stage must be"),
        ('{"pretrain": {"epochs": NaN}}', "tasks.pretrain.epochs must be float"),
        ('{"pretrain": {"optim": {"betas": [1]}}}', "betas must be"),
        ('{"task": "copy", "memory": "none"}', "memory must be"),
        ('{"out": 7}', "out must be"),
        ('{"tasks": {"a": {}}}', "tasks.a must name its class"),
        ('{"tasks": {"a": {"class": "os:environ"}}}', "must be a TaskConfig, got the class"),
        ('{"tasks": {"a": {"class": "stmeta.nosuch:A"}}}', "must be a TaskConfig, got the class"),
        ('{"tasks": {"a": {"class": "nosuch:A"}}}', "import its module first"),
        ('{"tasks": {"a": {"class": "stmeta.memory.ntm:NTMConfig"}}}', "must be a TaskConfig"),
        ('{"tasks": {"a": {"class": 3}}}', "must be a TaskConfig"),
        ('{"tasks": {}}', "--stage must name at least one task"),
        ('{"task": "copy", "memory": 3}', "memory must be one of"),
        ('{"task": [], "memory": "ntm"}', "task must be one of"),
    ],
)
def test_a_config_that_no_run_wrote(run, capsys, text, message):
    (run / "config.json").write_text(text)
    shown = resumed(capsys, run)
    assert message in shown and "config.json" in shown


def test_a_folder_without_a_run(tmp_path, capsys):
    assert "holds no run" in resumed(capsys, tmp_path / "nothing")
    assert "holds no run" in resumed(capsys, tmp_path)
    assert not (tmp_path / "nothing").exists()
    assert main([*TINY, "--out", str(tmp_path / "new"), "--resume"]) == 1
    assert "holds no run" in " ".join(capsys.readouterr().out.split())


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipes.get("demo")
    with claimed(config, False) as first:
        with claimed(config, False) as second:  # the other has not written its config yet
            assert second.folder != first.folder
            write_config(second)
        own = dataclasses.replace(config, out=first.folder)
        with pytest.raises(DataError, match="another run is writing"), claimed(own, False):
            pass
        write_config(first)
        with pytest.raises(DataError, match="another run is writing"), claimed(own, True):
            pass
    with claimed(own, True) as again:
        assert again.folder == first.folder
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo", "demo-2"]


def test_a_full_disk_leaves_the_last_checkpoint(run, monkeypatch):
    path = run / "sequences" / "last.pt"
    before = path.read_bytes()

    def full(_state, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state({}, path)
    assert path.read_bytes() == before and not list(run.rglob("*.tmp"))
