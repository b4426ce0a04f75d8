"""What is installed from elsewhere than a checkout: the source distribution, and README's lines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import stmeta

ROOT = Path(__file__).resolve().parents[1]


def names(requirements: str | list[str]) -> set[str]:
    found = requirements.split() if isinstance(requirements, str) else requirements
    return {re.split(r"[<>=;\[ ]", name)[0] for name in found}


def test_a_source_distribution_has_all_that_is_compiled(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    for name in ("csrc", "kernels", "stmeta"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pyc*"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {Path(*Path(name).parts[1:]) for name in tar.getnames()}
    wanted = {path.relative_to(tree) for path in tree.glob("csrc/**/*") if path.is_file()}
    wanted |= {path.relative_to(tree) for path in tree.glob("kernels/**/*.py")}
    wanted |= {path.relative_to(tree) for path in tree.glob("stmeta/**/*.py")}
    wanted |= {Path("pyproject.toml"), Path("setup.py"), Path("README.md"), Path("LICENSE")}
    assert len(wanted) > 200
    assert not sorted(map(str, wanted - held))


@pytest.mark.parametrize("source", ["README.md", "Makefile"])
def test_install_lines_name_what_the_build_needs(source):
    """Without build isolation pip installs none of it."""
    lines = re.findall(r"pip install ([^#\n]*)", (ROOT / source).read_text())
    given = names(" ".join(lines)) | ({"torch"} if "^torch==" in " ".join(lines) else set())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert names(project["build-system"]["requires"]) <= given


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == stmeta.__version__
    assert project["license"] == citation["license"]
    assert f"\n## {stmeta.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_commits_are_checked_with_the_linters_of_continuous_integration():
    """Hooks of pre-commit run each tool of `make lint`, and both name the same Python."""
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    tools = re.findall(r"\$\(BIN\)/((?:ruff )?[\w-]+)(?= )", lint)
    assert tools == [entry.split(".venv/bin/")[1] for entry in map(_tool, entries)]
    assert any("--pythonpath .venv/bin/python" in entry for entry in entries)
    assert "make lint\n" in (ROOT / ".ci" / "run").read_text()


def _tool(entry: str) -> str:
    """Path of a tool, with the first word of its command where ruff has several."""
    words = entry.split()
    return " ".join(words[: 2 if words[0].endswith("ruff") else 1])
