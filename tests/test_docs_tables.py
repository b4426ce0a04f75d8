"""The tables of the documents are what their commands print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# Rows of the roofline table -> the case, and how many calls of the op it has.
ROOFLINE = {
    "`shifted_patch_embed`, 32 clips, all tokens, fp32": ("small_64, batch 32, all tokens", 1),
    "`locality_attention`, decoder B8, fp32": ("decoder, B8 N513 H16 E16", 1),
    "`ntm_step`, B64 N1024 M64": ("4 steps, B64 N1024 M64 H4", 4),
    "`content_addressing`, B64 N1024 M64": ("B64 N1024 M64 H4", 1),
    "`erase_add`, B64 N1024 M64": ("B64 N1024 M64 H4", 1),
}


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
    there = RESULTS.glob("*.json")
    assert shown == {str(path.relative_to(ROOT)) for path in there}


def test_the_roofline_has_what_was_measured():
    """Its floors are computed by hand; the times beside them are results."""
    text = (ROOT / "docs" / "ops.md").read_text()
    results = json.loads((RESULTS / "epyc-zen4-2core.json").read_text())
    copied = re.search(r"This machine copied ([\d.]+) GB/s", text)
    assert copied and float(copied[1]) == round(results["machine"]["copy_gb_per_s"], 1)
    forward = {
        (row["op"], row["case"]): row["median_ms"]
        for row in results["rows"]
        if (row["pass"], row["backend"]) == ("forward", "cpu")
    }
    shown = re.findall(r"^\| (`.*) \| .* \| .* \| .* ms \| ([\d.]+) ms \|$", text, re.M)
    assert [name for name, _ in shown] == list(ROOFLINE)
    for name, measured in shown:
        case, calls = ROOFLINE[name]
        milliseconds = forward[name.split("`")[1], case] / calls
        assert float(measured) == float(f"{milliseconds:.2g}"), name
