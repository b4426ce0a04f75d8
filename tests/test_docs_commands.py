"""The commands of the documents run, made small, in the order of each page.

A page has a folder of its own, in which a command finds what those before it left. `SMALL` says how
a command is made small, `LEFT_OUT` why one does not run here. A command that is in neither fails,
and so does an entry without its command.
"""

from __future__ import annotations

import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from stmeta import cli
from stmeta.data.ingest.encode import encode_frames
from tests.data._composite import write_local
from tests.data._videos import moving_bars

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

MODEL = "--model.dim 16 --model.depth 1 --model.heads 1 --model.head-dim 16"
# The other stages, with the same options, are in tests/train/test_pipeline.py and in small_set.
DEMO = f"--data {{motions}} --max-steps 1 {MODEL} --stage pretrain --pretrain.evals 1"
SET = f"--max-steps 1 --pretrain.batch-size 4 --classify.batch-size 4 {MODEL}"

# Command -> the options that make it small. {motions}: the built-in clips, a few of each class.
SMALL = {
    "stmeta shard videos/ --out shards --val-fraction 0.2": "--workers 1",
    "stmeta verify shards/train --level decode": "--workers 1",
    "stmeta stream shards/train": "--batch-size 4 --threads 1",
    "python -m stmeta.train --recipe small_set --data shards --fused": SET,
    "stmeta shard videos --out shards --val-fraction 0.2": "--workers 1",
    "stmeta shard videos --out shards --annotations train=a.csv val=b.csv": (
        "--workers 1 --out lists"
    ),
    "stmeta index shards/train": "",
    "stmeta dataset motions": "--size tiny --root {motions}/..",
    "stmeta inspect shards/train": "",
    "stmeta inspect shards/train --sample KEY --save clip.png": "--sample walk_1",
    'stmeta verify "shards/train/{000000..000007}.tar" --level hash --resume': "--workers 1",
    "stmeta bench shards/train --stride 4 --save bench.png": (
        "--seconds 0.05 --rounds 1 --batch-size 2 --frames 4 --threads 1"
    ),
    "stmeta stream shards/train --epochs 2 --frames 16 --stride 2": "--batch-size 4 --threads 1",
    "stmeta dataset composite --out data --kinetics train.csv --kinetics-videos k400 "
    "--tinyvirat tiny_train_v2.json --tinyvirat-videos TinyVIRAT_V2 --val-fraction 0.05": (
        "--workers 1"
    ),
    "python -m stmeta.train --fused": DEMO,
    "python -m stmeta.train --recipe small_set --data DIR": f"{SET} --stage pretrain",
    "python -m stmeta.train --help": "",
    "python -m stmeta.train --resume runs/demo": "",
    "python -m stmeta.train --recipe ntm_copy --fused": "--sequences.steps 1",
}
# Words of a command -> what stands here in their place.
INSTEAD = {"{000000..000007}": "{000000..000000}", "DIR": "{motions}"}

ENVIRONMENT = "sets up an environment from the network"
TESTED = "tests/{}.py runs it"
LEFT_OUT = {
    "make train": f"{ENVIRONMENT}; what it then runs is a command of docs/training.md",
    "make test": f"{ENVIRONMENT}; it is this test suite",
    "make test-slow": f"{ENVIRONMENT}; it is the rest of this test suite",
    "make lint": f"{ENVIRONMENT}; it is the other half of continuous integration",
    "pip install torch": ENVIRONMENT,
    "pip install setuptools wheel pybind11 ninja numpy": ENVIRONMENT,
    "pip install -v --no-build-isolation .": f"{ENVIRONMENT} and compiles for minutes",
    "python examples/finetune_videomae.py": TESTED.format("test_examples"),
    "python examples/spt_masked_vit.py": TESTED.format("test_examples"),
    "python examples/ntm_on_encoder.py": TESTED.format("test_examples"),
    "torchrun --nproc-per-node 2 -m stmeta.train --fused": (
        "tests/train/test_distributed.py runs it, and compares the losses"
    ),
    "python -m stmeta.train --recipe mann_omniglot --fused --data omniglot": (
        "needs Omniglot; tests/train/test_memory_runs.py runs it with characters that it makes"
    ),
    "python -m stmeta.train --recipe lstm_omniglot --fused --data omniglot": (
        "needs Omniglot; tests/train/test_memory_runs.py runs it with characters that it makes"
    ),
}


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks of shell, without comments.

    Those of the recipes of docs/contributing.md run in test_contributing.py.
    """
    text = re.sub(r"^## A new .*", "", page.read_text(), flags=re.M | re.S)
    found = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
    lines = [re.sub(r"(^|\s+)# .*", "", line) for block in found for line in block.splitlines()]
    return [line for line in lines if line]


ALL = [(page, line) for page in PAGES for line in commands(page)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[Path, Path]:
    """Page -> the folder in which its commands run, with videos and lists of them."""
    made = {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}
    clips = [encode_frames(moving_bars(i, 32, 48, 64), 25, gop=8) for i in range(3)]
    for folder in made.values():
        lists = {"a.csv": [], "b.csv": []}
        for label in ("run", "walk"):
            (folder / "videos" / label).mkdir(parents=True)
            for i in range(6):
                (folder / "videos" / label / f"{i}.mp4").write_bytes(clips[i % 3])
                lists["a.csv" if i < 4 else "b.csv"].append(f"{label}/{i}.mp4 {label}\n")
        for name, lines in lists.items():
            (folder / name).write_text("".join(lines))
        write_local(folder, [*clips, clips[0]])
        broken = [p for p in folder.glob("k400/**/*.mp4") if p.read_bytes().startswith(b"<html>")]
        broken[0].unlink()  # a missing video is no error, a broken one is
    return made


def call(words: list[str]) -> int:
    """Run a command in this process, so that torch is loaded once for all; its exit code."""
    try:
        if words[0] == "stmeta":
            return cli.main(words[1:]) or 0
        assert words[:2] == ["python", "-m"], words
        package = find_spec(words[2]).submodule_search_locations
        name = f"{words[2]}.__main__" if package else words[2]
        return importlib.import_module(name).main(words[3:]) or 0
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(*x, id=f"{x[0].stem}: {x[1]}") for x in ALL]
)
def test_command_runs(page, line, folders, tiny_motions, monkeypatch, capfd):
    if line in LEFT_OUT:
        pytest.skip(LEFT_OUT[line])
    assert line in SMALL, (
        f"say in SMALL how {line!r} is made small, or in LEFT_OUT why it is not run"
    )
    command = line
    for word, here in INSTEAD.items():
        command = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", here, command)
    command = f"{command} {SMALL[line]}".replace("{motions}", str(tiny_motions))
    monkeypatch.chdir(folders[page])
    code = call(shlex.split(command))
    assert code == 0, f"{command}\n{''.join(capfd.readouterr())[-4000:]}"


def test_every_entry_has_its_command():
    lines = {line for _, line in ALL}
    assert set(SMALL) | set(LEFT_OUT) <= lines
    assert not set(SMALL) & set(LEFT_OUT)
