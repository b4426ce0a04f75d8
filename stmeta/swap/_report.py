"""What `fuse` did, block by block."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Replaced(NamedTuple):
    """A block that runs on fused ops now."""

    name: str
    """Path in the model, as in `named_modules`; "" is the model itself."""
    block: str
    """Class of the block before."""
    ops: str
    """What runs instead."""


class Left(NamedTuple):
    """A block that stays as it was."""

    name: str
    """Path in the model, as in `named_modules`; "" is the model itself."""
    block: str
    """Class of the block."""
    reason: str
    """Why it stays."""


@dataclass(frozen=True)
class FuseReport:
    """Result of `fuse`. `print(report)` shows it as a table; so does rich."""

    replaced: list[Replaced] = field(default_factory=list)
    """Blocks that run on fused ops."""
    left: list[Left] = field(default_factory=list)
    """Blocks that look like ones we know, or a model without any, and why they stay."""

    def __rich__(self) -> Table:
        """The report as a table of rich."""
        title = f"fuse: {len(self.replaced)} replaced, {len(self.left)} left alone"
        table = Table(title=title, title_justify="left")
        for column in ("block", "class", "", "ops, or reason"):
            table.add_column(column, overflow="fold")
        for item in self.replaced:
            table.add_row(escape(item.name or "(model)"), item.block, "fused", escape(item.ops))
        for item in self.left:
            table.add_row(escape(item.name or "(model)"), item.block, "left", escape(item.reason))
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=120).print(self)
        return buffer.getvalue()
