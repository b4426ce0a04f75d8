"""Imports go one way, and `import stmeta` stays light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAIN = ("train", "__main__.py")

# Layer -> the layers of stmeta it may import. A layer may always import itself.
ALLOWED = {
    "_errors": set(),
    "_extension": set(),
    "_util": {"_errors"},
    "_openmp": set(),
    "kernels": set(),
    "ops": {"_errors", "_extension", "kernels"},
    "nn": {"_errors", "ops", "memory"},
    "memory": {"_errors", "ops"},
    "models": {"_errors", "ops", "nn", "memory"},
    "swap": {"_errors", "ops", "nn"},
    "data": {"_errors", "_extension", "_util"},
    "train": {"_errors", "_util", "data", "memory", "models", "nn", "ops"},
    "recipes": {"data", "memory", "models", "train"},
    "train.__main__": {"_errors", "_openmp", "_util", "recipes", "train"},
    "commands": {"_errors", "_util", "data", "train"},
    "__main__": {"cli"},
    "cli": {"_errors", "_openmp", "_util", "commands"},
}

# The rooms of stmeta/data, likewise: each may import those before it that it names.
ROOMS = {
    "storage": set(),
    "video": set(),
    "augment": {"video"},
    "decode": {"augment", "storage", "video"},
    "shards": {"storage", "video"},
    "loading": {"augment", "decode", "shards", "storage", "video"},
    "ingest": {"shards", "video"},
    "verify": {"shards", "storage", "video"},
    "profile": {"decode", "loading", "shards", "storage"},
    "episodes": {"loading"},
    "datasets": {"ingest", "shards", "video"},
}


def imported(path: Path) -> list[tuple[str, ...]]:
    """What a file imports from stmeta, anywhere in it: ("data", "video", "probe", "VideoInfo")."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return [tuple(name.split(".")[1:]) for name in sorted(names) if name.startswith("stmeta.")]


def sources() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "stmeta").parts[0], p) for p in (ROOT / "stmeta").rglob("*.py")]
    files += [("kernels", p) for p in (ROOT / "kernels").rglob("*.py")]
    # The command line is above the recipes, which it finds by name, and they above the rest.
    files = [("train.__main__" if p.parts[-2:] == MAIN else layer, p) for layer, p in files]
    return [(layer.removesuffix(".py"), path) for layer, path in files if layer != "__init__.py"]


def modules() -> dict[tuple[str, ...], Path]:
    files = {
        p.relative_to(ROOT / "stmeta").with_suffix(""): p for p in ROOT.rglob("stmeta/**/*.py")
    }
    return {tuple(p for p in k.parts if p != "__init__"): path for k, path in files.items()}


def test_tables_have_no_circle():
    for table in (ALLOWED, ROOMS):
        list(graphlib.TopologicalSorter(table).static_order())


def test_modules_have_no_circle():
    """Also where a function imports: what must be put off so as to work is a circle."""
    known = modules()
    needs = {}
    for module, path in known.items():
        found = {name if name in known else name[:-1] for name in imported(path)}
        needs[module] = {name for name in found if name in known and name not in ((), module)}
    list(graphlib.TopologicalSorter(needs).static_order())


def test_rooms_import_downwards():
    for module, path in modules().items():
        if len(module) < 2 or module[0] != "data":
            continue
        rooms = {name[1] for name in imported(path) if name[0] == "data" and len(name) > 1}
        room = module[1]
        assert room in ROOMS, f"{path}: say in ROOMS what the room {room!r} may import"
        assert rooms <= ROOMS[room] | {room}, f"{path} imports {rooms - ROOMS[room]}"


@pytest.mark.parametrize(
    ("layer", "path"), [pytest.param(a, b, id=str(b.relative_to(ROOT))) for a, b in sources()]
)
def test_direction(layer, path):
    assert layer in ALLOWED, f"{path.name}: say in ALLOWED what the layer {layer!r} may import"
    layers = {name[0] for name in imported(path) if name[0] in ALLOWED}
    assert layers <= ALLOWED[layer] | {layer}


def test_folders_and_files_are_small():
    """No folder of more than 20 Python files, and no file of more than 400 lines."""
    files = [
        path
        for top in ("stmeta", "kernels", "csrc", "tests", "benchmarks", "examples")
        for path in (ROOT / top).rglob("*")
        if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}
    ]
    folders = Counter(path.parent.relative_to(ROOT) for path in files if path.suffix == ".py")
    assert {str(k): n for k, n in folders.items() if n > 20} == {}
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {k: n for k, n in lines.items() if n > 400} == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("stmeta", ["triton", "nvidia.dali", "av", "matplotlib", "pyarrow", "psutil", "filelock"]),
        ("stmeta.train.tasks.classify", ["torchmetrics", "scipy", "transformers"]),
        ("stmeta.data.decode.worker", ["torch", "scipy", "PIL", "psutil"]),
    ],
)
def test_import_is_light(module, heavy):
    code = f"import sys, {module}; sys.exit(', '.join({{*{heavy}}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"import {module} loads {done.stderr}"
