"""`stmeta dataset`: data sets that need no list of your own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from stmeta._util.progress import ProgressBar
from stmeta.commands.dataset_composite import DatasetComposite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motions:
    """Draw clips of 24 kinds of motion, if they are not there yet, and print their folder."""

    root: Path | None = None
    """Folder; the user's cache if left out."""
    size: Literal["full", "tiny"] = "full"
    """tiny: a few clips per class."""
    workers: int | None = None
    """Processes; one per core if left out."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.datasets import motions

        with ProgressBar(hidden=False) as bar:
            path = motions.build(self.root, size=self.size, workers=self.workers, progress=bar)
        print(path)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Make a data set: the built-in clips, or Kinetics and TinyVIRAT as one."""

    made: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Motions, subcommand("motions")]
            | Annotated[DatasetComposite, subcommand("composite")]
        ]
    ]

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can be continued."""
        return getattr(self.made, "resumable", False)

    def run(self) -> int:
        """Run the command; return the exit code."""
        return self.made.run()
