"""Imports go one way, and `import stmeta` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Layer -> the layers of stmeta it may import. A layer may always import itself.
ALLOWED = {
    "_errors": set(),
    "_extension": set(),
    "_files": {"_errors"},
    "_from_json": set(),
    "_openmp": set(),
    "_terminal": set(),
    "kernels": set(),
    "distributed": set(),
    "ops": {"_errors", "_extension", "kernels"},
    "nn": {"_errors", "ops", "memory"},
    "memory": {"_errors", "ops"},
    "models": {"_errors", "ops", "nn", "memory"},
    "swap": {"_errors", "ops", "nn"},
    "data": {"_errors", "_extension", "_files", "_terminal"},
    "config": {"_from_json", "memory", "models"},
    "checkpoint": {"_errors", "_files"},
    "report": set(),
    "recipes": {"config", "memory", "models"},
    "trainer": {"_errors", "checkpoint", "config", "distributed"},
    "stage_loaders": {"config", "data", "distributed", "models"},
    "stages": {"_errors", "config", "data", "distributed", "models", "nn", "stage_loaders"},
    "memory_stages": {"_errors", "config", "data", "models"},
    "memory_report": {"memory", "memory_stages", "report"},
    "runs": {"_errors", "_files", "config"},
    "run_checks": {"_errors", "checkpoint", "config", "data", "models", "runs"},
    "pipeline": {
        *("_errors", "config", "data", "distributed", "models", "ops"),
        *("report", "run_checks", "runs", "stage_loaders", "stages", "trainer"),
    },
    "memory_pipeline": {
        *("_errors", "config", "data", "distributed", "memory", "memory_report", "memory_stages"),
        *("models", "run_checks", "runs", "trainer"),
    },
    "train": {
        *("_errors", "_openmp", "_terminal", "config", "distributed", "memory_pipeline"),
        *("pipeline", "recipes", "runs", "trainer"),
    },
    "commands": {"_errors", "_terminal", "data", "report"},
    "cli": {"_errors", "_openmp", "_terminal", "commands"},
}


def imported(path: Path) -> set[str]:
    """Layers of stmeta that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("stmeta.")}


def sources() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "stmeta").parts[0], p) for p in (ROOT / "stmeta").rglob("*.py")]
    files += [("kernels", p) for p in (ROOT / "kernels").rglob("*.py")]
    return [(layer.removesuffix(".py"), path) for layer, path in files if layer != "__init__.py"]


@pytest.mark.parametrize(
    ("layer", "path"), [pytest.param(a, b, id=str(b.relative_to(ROOT))) for a, b in sources()]
)
def test_direction(layer, path):
    assert layer in ALLOWED, f"{path.name}: say in ALLOWED what the layer {layer!r} may import"
    layers = {name for name in imported(path) if name in ALLOWED}
    assert layers <= ALLOWED[layer] | {layer}


def test_import_is_light():
    code = (
        "import sys, stmeta; heavy = {'triton', 'nvidia.dali', 'av', 'matplotlib', 'pyarrow'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"import stmeta loads {done.stderr}"
