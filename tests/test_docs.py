"""What the documents say exists: commands parse, links lead somewhere, code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stmeta import cli
from stmeta.train import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands() -> list[tuple[str, list[str]]]:
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()
    ]
    return [(line, shlex.split(line, comments=True)) for line in lines if line.strip()]


@pytest.mark.parametrize(("line", "words"), commands())
def test_command_exists(line, words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    elif "stmeta.train" in words:  # by python -m, or by torchrun with options of its own
        assert words[0] in ("python", "torchrun") and words[words.index("stmeta.train") - 1] == "-m"
        rest = words[words.index("stmeta.train") + 1 :]
        if "--help" in rest or "--resume" in rest:  # these print, or read a run's folder
            rest = [word for word in rest if word not in ("--help", "--resume", "runs/demo")]
        parse(rest)
    elif words[0] == "stmeta":
        cli.parse(words[1:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), line
    else:
        assert words[0] in ("pip", "pytest"), f"no check for: {line}"


def test_continuous_integration_calls_targets_that_exist():
    targets = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
