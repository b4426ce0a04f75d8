"""The benchmark's results as a table: in the terminal, and in Markdown for the documents."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_HEADER = ("op", "case", "pass", "backend", "median ms", "p95 ms", "GB/s", "% copy", "peak MiB")

RENAMED = {"memory_scan": "lrua_scan"}  # ops, since results were stored


def load(path: Path) -> dict[str, Any]:
    """Stored results, with the names that ops have now."""
    results = json.loads(path.read_text())
    for row in (*results["rows"], *results["left_out"]):
        row["op"] = RENAMED.get(row["op"], row["op"])
    return results


def print_table(rows: list[Row], left_out: list[dict[str, str]]) -> None:
    """One table of all rows, then what it does not show."""
    table = Table(*_HEADER, "vs eager", "vs compile", title="stmeta benchmarks")
    for column in table.columns[4:]:
        column.justify = "right"
    shown: tuple[str, str, str] = ("", "", "")
    for row in rows:
        place = (row["op"], row["case"], row["pass"])
        if shown[0] and place != shown and place[:2] != shown[:2]:
            table.add_section()
        table.add_row(*_place(place, shown), row["backend"], *_numbers(row))
        shown = place
    console = Console(width=150)
    console.print(table)
    for line in across(rows):
        console.print(line, markup=False)
    for item in left_out:
        name = f"{item['op']}, {item['case']}" if item["case"] else item["op"]
        console.print(f"{name}: no {item['backend']}: {item['reason']}", markup=False)


def _place(place: tuple[str, str, str], shown: tuple[str, str, str]) -> tuple[str, ...]:
    """Op, case and pass, as far as they differ from the line above."""
    same = next((i for i in range(3) if place[i] != shown[i]), 3)
    return ("",) * same + place[same:]


def _numbers(row: Row) -> tuple[str, ...]:
    return (
        *(f"{row['median_ms']:.3f}", f"{row['p95_ms']:.3f}"),
        *(_show(row["gb_per_s"], "{:.1f}"), _show(row["percent_of_copy"], "{:.0f}")),
        f"{row['peak_mib']:.0f}",
        *(_show(row[key], "{:.2f}x") for key in ("vs_eager", "vs_compile")),
    )


def _show(number: float | None, pattern: str) -> str:
    return "-" if number is None else pattern.format(number)


def across(rows: list[Row]) -> list[str]:
    """Ratios across cases that were timed together, such as bf16 against fp32."""
    lines = []
    for _, group in groupby(rows, key=lambda row: (row["op"], row["run"])):
        ours = list(group)
        for row in ours:
            last = row["pass"] == ours[-1]["pass"]
            if last and row["case"] != ours[0]["case"]:
                names = f"{row['op']}, {row['pass']}: {row['backend']}, {row['case']}"
                base = f"eager, {ours[0]['case']}"
                lines.append(f"{names} against {base}: {row['vs_first']:.2f}x")
    return lines


def markdown(rows: list[Row], op: str) -> str:
    """A table of one op: a line per case and pass, a column per backend."""
    rows = [row for row in rows if row["op"] == op]
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    fused = [b for b in backends if b not in BASES]
    head = ["case", "pass", *(f"{name} ms" for name in backends)]
    head += [f"{name} {key}" for name in fused for key in ("vs eager", "vs compile", "% of copy")]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for place, group in groupby(rows, key=lambda row: (row["case"], row["pass"])):
        of = {row["backend"]: row for row in group}
        cells = [*place, *(_milliseconds(of.get(name)) for name in backends)]
        for name in fused:
            row = of.get(name, {})
            cells += [_show(row.get(key), "{:.1f}×") for key in ("vs_eager", "vs_compile")]
            cells.append(_show(row.get("percent_of_copy"), "{:.0f}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BASES = ("eager", "compile", "compile, one graph", "reduce-overhead", "cuda-graph")


def _milliseconds(row: Row | None) -> str:
    """Three digits; microseconds show up as 0.012."""
    if row is None:
        return "-"
    number = row["median_ms"]
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
