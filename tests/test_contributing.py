"""The recipes of docs/contributing.md, followed to the letter in a copy of the project.

Each `## A new ...` gives files, at most one line for a file that is there, and commands. All are
written into one copy, and one process there runs all commands, so that torch is loaded once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stmeta import cli
from stmeta.data.ingest.encode import encode_frames
from tests.data._videos import moving_bars

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "contributing.md").read_text()
COPIED = ("benchmarks", "csrc", "kernels", "stmeta", "tests")

# Begin of a command -> what makes it small.
SMALL = {
    "python -m stmeta.train": "--max-steps 1",
    "pytest benchmarks": "--collect-only",  # torch.compile of it takes longer than all the rest
    "TRITON_INTERPRET=1 pytest": "-k 'row_norm and matches_reference'",
    "pytest tests": "",
}

RUN = """
import importlib, json, shlex, sys, traceback
import pytest

codes = {}
for command in json.loads(sys.argv[1]):
    print(f"$ {command}", flush=True)
    words = [word for word in shlex.split(command) if "=" not in word.split("-")[0]]
    if words[0] == "pytest":
        options = ["-q", "-p", "no:cacheprovider", "-n", "0"]
        codes[command] = int(pytest.main([*options, *words[1:]]))
    else:
        assert words[:2] == ["python", "-m"], command
        try:
            codes[command] = importlib.import_module(f"{words[2]}.__main__").main(words[3:])
        except Exception:
            codes[command] = traceback.format_exc()
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""


@dataclass(frozen=True)
class Recipe:
    """What a section of the page says."""

    name: str
    files: dict[str, str]
    """Path -> text of each new file."""
    lines: list[tuple[str, str, str]]
    """File, the line that it has, and the line that comes below it."""
    commands: list[str]


def recipes() -> list[Recipe]:
    found = []
    for name, section in re.findall(r"^## A new (.*)\n((?:(?!^## ).*\n)*)", TEXT, re.M):
        files = re.findall(r"^\*\*([\w./]+)\*\*\n\n```python\n(.*?)^```", section, re.M | re.S)
        lines = re.findall(
            r"^\*\*One line in ([\w./]+)\*\*, below `(.*)`:\n\n```python\n(.*)\n```", section, re.M
        )
        shell = "".join(re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S))
        shell = re.sub(r"\s+#.*", "", shell)
        assert section.count("```python") == len(files) + len(lines), f"{name}: a block has no file"
        found.append(Recipe(name, dict(files), lines, shell.splitlines()))
    return found


RECIPES = recipes()
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def test_all_kinds_are_there():
    assert [r.name for r in RECIPES] == ["memory", "task", "baseline", "video encoder", "op"]


@every_recipe
def test_it_is_one_file_of_each_kind(recipe):
    kinds = [path.rsplit("/", 1)[0].replace("kernels/triton", "kernel") for path in recipe.files]
    tests = [path for path in recipe.files if path.startswith("tests/")]
    shown = [path for path in recipe.files if path.startswith(("stmeta/recipes/", "benchmarks/"))]
    code = set(recipe.files) - set(tests) - set(shown)
    backends = [path for path in code if path.startswith(("csrc/", "kernels/"))]
    assert len(tests) == len(shown) == len(code) - len(backends) == 1
    assert not backends or recipe.name == "op"
    assert len(recipe.lines) <= (recipe.name == "op")
    assert len(kinds) == len(set(recipe.files))
    assert not [path for path in recipe.files if (ROOT / path).exists()]


def small(command: str) -> str:
    (more,) = (more for begin, more in SMALL.items() if command.startswith(begin))
    return f"{command} {more}".strip()


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> tuple[Path, dict[str, int | str], str]:
    """The copy, the exit code or the error of each command, and what all printed."""
    copy = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("results"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for recipe in RECIPES:
        for path, text in recipe.files.items():
            assert (copy / path).parent.is_dir(), f"{path}: a folder that is not there yet"
            (copy / path).write_text(text)
        for path, above, line in recipe.lines:
            old = (copy / path).read_text()
            assert old.count(f"{above}\n") == 1, f"{path}: {above}"
            (copy / path).write_text(old.replace(f"{above}\n", f"{above}\n{line}\n"))
    for label in ("run", "walk"):
        (copy / "videos" / label).mkdir(parents=True)
        for i in range(6):
            video = encode_frames(moving_bars(i, 32, 48, 64), 25, gop=8)
            (copy / "videos" / label / f"{i}.mp4").write_bytes(video)
    words = [copy / "videos", "--out", copy / "shards", "--val-fraction", 0.2, "--workers", 1]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["shard", *map(str, words)])
    # Under xdist, pytest-benchmark believes that it is in a worker, and refuses --benchmark-only.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(copy)
    commands = [small(command) for recipe in RECIPES for command in recipe.commands]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=copy,
        env=environment | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    printed = done.stdout + done.stderr
    assert (copy / "codes.json").exists(), printed[-4000:]
    return copy, json.loads((copy / "codes.json").read_text()), printed


@every_recipe
def test_it_runs(recipe, followed):
    _, codes, printed = followed
    ends = {command: codes[small(command)] for command in recipe.commands}
    assert ends and not any(ends.values()), f"{ends}\n{printed[-8000:]}"


def test_it_passes_the_linter(followed):
    copy, _, _ = followed
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    files = [path for recipe in RECIPES for path in recipe.files]
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *words, *files], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
