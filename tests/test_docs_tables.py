"""The tables of the documents are what their commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_what_their_commands_print():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_are_shown():
    """Each file of results stands in a table, and the ops in the README's."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    commands = re.findall(r"^<!-- table: (.*) -->$", "\n".join(p.read_text() for p in pages), re.M)
    assert "python -m stmeta.ops --markdown" in commands
    shown = set(re.findall(r"benchmarks/results/\S+\.json", " ".join(commands)))
    there = (ROOT / "benchmarks" / "results").glob("*.json")
    assert shown == {str(path.relative_to(ROOT)) for path in there}
