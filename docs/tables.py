"""Writes the tables of the documents, from the commands that they name: `python docs/tables.py`.

A table stands between a line `<!-- table: COMMAND -->` and a line `<!-- end of table -->`; what
COMMAND prints goes between them. `--check` writes nothing, and fails where a page and the output of
a command differ. COMMAND begins with `python -m` and runs in the root of the project.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"(?<=^<!-- table: )(.+)( -->\n)(.*?)(?=^<!-- end of table -->$)", re.M | re.S)


def output(command: str) -> str:
    """What a command prints; it runs in this process, so that torch is loaded once for all.

    Raises:
        SystemExit: it is no `python -m`, or it fails.
    """
    words = shlex.split(command)
    if words[:2] != ["python", "-m"]:
        raise SystemExit(f"docs/tables.py: a table is made by `python -m ...`, got {command!r}")
    shown, sys.argv = io.StringIO(), words[2:]
    with contextlib.redirect_stdout(shown):
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    return f"\n{shown.getvalue().strip()}\n\n"


def written(page: Path) -> str:
    """The text of a page with its tables as their commands print them."""
    return TABLE.sub(lambda m: m[1] + m[2] + output(m[1]), page.read_text())


def main() -> int:
    """Write the tables, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 on drift")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    drift = 0
    for page in PAGES:
        name, old, new = str(page.relative_to(ROOT)), page.read_text(), written(page)
        if old == new:
            continue
        drift += 1
        if options.check:
            lines = (text.splitlines(keepends=True) for text in (old, new))
            sys.stdout.writelines(
                difflib.unified_diff(*lines, name, f"{name}, as commands print it")
            )
            continue
        page.write_text(new)
        print(f"wrote {name}")
    if options.check and drift:
        print("run `python docs/tables.py`")
    return int(options.check and drift > 0)


if __name__ == "__main__":
    sys.exit(main())
