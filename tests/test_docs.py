"""What the documents say is there: commands parse, links lead somewhere, names and files exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest

from stmeta import cli
from stmeta.train import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = ROOT / "CHANGELOG.md"  # it names what was there


def existing(page: Path) -> str:
    """The text but for recipes, which tell of files to come: test_contributing.py follows them."""
    return re.sub(r"^## A new .*", "", page.read_text(), flags=re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", existing(page), re.S)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


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
    for target, part in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", prose(page.read_text())):
        if target.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not part or part in headings(path), f"{page.name}: {target}#{part}"


def headings(page: Path) -> set[str]:
    """Names of a page's headings in links."""
    found = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


def code_spans(page: Path) -> list[str]:
    """What stands between backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", prose(existing(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_are_there(page):
    """`stmeta.data.LoaderConfig.stride`: a module, or what is found in one."""
    if page == HISTORY:
        pytest.skip("it names what was there")
    for name in {n for span in code_spans(page) for n in re.findall(r"^stmeta(?:\.\w+)+", span)}:
        assert found(name), f"{page.name}: there is no {name}"


def found(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[end:], module)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page):
    """`stmeta/ops/random_masking.py`: in a folder of the project, patterns included."""
    folders = "benchmarks|csrc|docs|examples|kernels|stmeta|tests"
    if page == HISTORY:
        pytest.skip("it names what was there")
    for span in code_spans(page):
        if re.fullmatch(rf"(?:{folders})/[\w./*-]+", span):
            assert list(ROOT.glob(span)), f"{page.name}: there is no {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_are_there(page):
    """`python -m benchmarks.report`, `make lint`, `stmeta index --full`: begun as they should."""
    for span in code_spans(page):
        if module := re.match(r"(?:python|pytest|torchrun) .*?-m (\S+)", span):
            assert importlib.util.find_spec(module[1]), f"{page.name}: {span}"
        elif target := re.fullmatch(r"make ([a-z-]+)", span):
            assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.M), span
        elif command := re.fullmatch(r"stmeta ([a-z]+)( .*)?", span):
            assert command[1] in cli.COMMANDS, f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
