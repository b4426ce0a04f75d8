"""What several commands print."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from stmeta._util.terminal import plain as plain

if TYPE_CHECKING:
    from stmeta.data.shards.index import BadSample


def print_json(value: object) -> None:
    """Print as JSON: letters as they are, but escaped what would move a terminal's cursor."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if not text.replace("\n", "").isprintable():
        text = json.dumps(value, indent=1)
    print(text)


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 shard", "2 shards", "3 classes"."""
    plural = noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {plural}"


def print_bad(heading: str, bad: Iterable[tuple[str, str]]) -> None:
    """Print a list of (what, reason), or nothing where there is none."""
    rows = list(bad)
    if rows:
        print(f"{len(rows)} {heading}:")
        for what, reason in rows:
            print(f"  {plain(what)}: {plain(reason)}")


def skip_rows(skipped: Iterable[BadSample]) -> list[dict[str, str]]:
    """What `--json` has of each sample that a loader skipped."""
    return [{"key": bad.key, "shard": bad.shard, "reason": bad.reason} for bad in skipped]


def print_table(title: str, columns: str, rows: Iterable[Iterable[object]]) -> None:
    """Print a table; columns are named in one string, and right-aligned where they start with >."""
    table = Table(title=title or None, title_justify="left")
    for column in columns.split():
        justify = "right" if column.startswith(">") else "left"
        heading = column.removeprefix(">").replace("_", " ")
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    Console(markup=False, highlight=False).print(table)
