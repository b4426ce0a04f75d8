"""A progress bar for work on videos."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """A bar on stderr with one line per split; call it with split, done, total and bad ones so far.

    Args:
        hidden: draw nothing.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=hidden,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, split: str, done: int, total: int, bad: int) -> None:
        """Set the bar of a split."""
        if split not in self.tasks:
            self.tasks[split] = self.progress.add_task(split, total=total)
        text = f"{split} [red]({bad} bad)[/]" if bad else split
        self.progress.update(self.tasks[split], completed=done, description=text)
