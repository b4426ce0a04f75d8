"""Print op x backend, and the reason for each missing cell: `python -m stmeta.ops`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from stmeta.ops import BACKENDS, availability, explain
from stmeta.ops._dispatch import registered_ops


def main() -> None:
    """Print the table, the missing cells and what `auto` takes."""
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


if __name__ == "__main__":
    main()
