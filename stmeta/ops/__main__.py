"""Print op x backend, and the reason for each missing cell: `python -m stmeta.ops`.

`--markdown` prints the README's table instead: what the sources implement, whatever runs here.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stmeta.ops import BACKENDS, availability, explain
from stmeta.ops._core.dispatch import registered_ops


def main() -> None:
    """Print the table, the missing cells and what `auto` takes."""
    parser = argparse.ArgumentParser(prog="python -m stmeta.ops", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="the README's table")
    if parser.parse_args().markdown:
        print(markdown())
        return
    console = Console()
    table = Table("op", *BACKENDS, title="stmeta.ops")
    reasons: dict[str, list[str]] = {}
    for op in registered_ops():
        cells = availability(op)
        table.add_row(op, *("no" if cells[name] else "yes" for name in BACKENDS))
        for name in BACKENDS:
            if cells[name]:
                reasons.setdefault(f"{name}: {cells[name]}", []).append(op)
    console.print(table)
    for reason, ops in reasons.items():
        console.print(f"{', '.join(ops)}: no {reason}", markup=False, soft_wrap=True)
    console.print(explain(), markup=False, soft_wrap=True)


def markdown() -> str:
    """The README's table: a row for each op, a column for each backend.

    Raises:
        SystemExit: this is no checkout, so that there are no sources.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc").is_dir():
        raise SystemExit("stmeta.ops: --markdown reads the sources; run it in a clone")
    sources = {
        "CPU C++": ("csrc/cpu", "*.cpp", r'impl\("{op}"'),
        "Triton": ("kernels/triton", "*.py", r"^def {op}\("),
        "CUDA C++": ("csrc/cuda", "*.cu", r'impl\("{op}"'),
    }
    text = {
        name: "\n".join(p.read_text() for p in sorted((root / folder).rglob(files)))
        for name, (folder, files, _) in sources.items()
    }
    lines = [f"| op | eager | {' | '.join(sources)} |", f"|{'---|' * (2 + len(sources))}"]
    for op in sorted(registered_ops()):
        cells = [f"`{op}`", "yes"]
        for name, (_, _, pattern) in sources.items():
            there = re.search(pattern.format(op=op), text[name], re.M)
            cells.append(
                "no" if there is None else "yes" if name == "CPU C++" else "yes (needs a GPU)"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
