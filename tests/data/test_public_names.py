"""What `from stmeta.data import ...` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

PACKAGES = ["stmeta.data", "stmeta.data.ingest", "stmeta.data.verify"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_once_in_each_list(package):
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    typed = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package)
        for alias in node.names
    }
    lazy = {name: f"{package}.{where}.{name}" for name, where in module._MODULES.items()}
    assert typed == lazy and module.__all__ == sorted(lazy)
    for name in module.__all__:  # a module of the same name would take its place once imported
        assert not isinstance(getattr(module, name), types.ModuleType)
        assert not list(Path(module.__file__).parent.glob(f"{name}.py")), name


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match=r"'stmeta\.data' has no attribute 'ClipLoad'"):
        getattr(importlib.import_module("stmeta.data"), "ClipLoad")  # noqa: B009


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, stmeta.data, stmeta.data.ingest, stmeta.data.verify\n"
        "heavy = {'torch', 'av', 'pyarrow', 'numpy', 'nvidia.dali'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"import stmeta.data loads {done.stderr}"
