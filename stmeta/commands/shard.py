"""`stmeta shard`: a folder of videos to a data set of shards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from stmeta._util.progress import ProgressBar
from stmeta.commands._show import count, plain, print_bad, print_table
from stmeta.commands._store import StoreOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Turn a folder of videos into a data set of shards.

    Labels come from the folders (VIDEOS/CLASS/*.mp4 or VIDEOS/SPLIT/CLASS/*.mp4), from CSV files or
    from lists of "path label" lines.
    Videos that cannot be read are listed with the reason; the others are kept, and the exit code
    is 1. --resume continues an interrupted run.
    """

    videos: Positional[Path]
    """Folder of videos."""
    out: Path
    """Folder of the data set to make."""
    annotations: tuple[str, ...] = ()
    """CSV files with a path and a label per video: file.csv, or SPLIT=file.csv."""
    path_column: str | None = None
    """Column with a video's path, name or stem; found by its name if left out."""
    label_column: str | None = None
    """Column with the label; found by its name if left out."""
    val_fraction: float = 0.0
    """Part of each class that becomes the val split."""
    seed: int = 0
    """Of the order and of the val split."""
    fps: float | Literal["source"] = 12.5
    """Frames per second."""
    stride: int = 1
    """H.264: make every so many frames decodable without those between. Loading clips of this
    stride then takes about half the time; files are a little larger."""
    copy: bool = False
    """Copy videos that are stored so already, instead of encoding them again."""
    json: bool = False
    """Print the result as JSON, without a progress bar."""
    store: OmitArgPrefixes[StoreOptions] = dataclasses.field(default_factory=StoreOptions)

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can be continued."""
        return True

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.ingest.sharding import ingest

        with ProgressBar(hidden=self.json) as bar:
            report = ingest(
                self.videos,
                self.out,
                annotations=self.annotations,
                path_column=self.path_column,
                label_column=self.label_column,
                val_fraction=self.val_fraction,
                seed=self.seed,
                encode=self.store.encode_options(self.fps, self.stride),
                copy=self.copy,
                shard_mib=self.store.shard_mib,
                workers=self.store.workers,
                resume=self.store.resume,
                progress=bar,
            )
        if self.json:
            lists = {
                name: [entry._asdict() for entry in getattr(report, name)]
                for name in ("bad", "remarks")
            }
            print(json.dumps(dataclasses.asdict(report) | lists, indent=1))
        else:
            _print_splits(report.splits, len(report.classes), report.seconds)
            if not report.classes:
                print(
                    f"No video has a label: {self._how_labels_are_given()} Training without labels "
                    "(pretraining) works with these shards; classification does not."
                )
            print_bad("were stored, but", [(x.source, x.reason) for x in report.remarks])
            print_bad("could not be stored", [(bad.source, bad.reason) for bad in report.bad])
            if report.others:
                kinds = [f"{n} {end} ({path})" for end, (n, path) in report.others.items()]
                print(
                    plain(f"left out, as their names are not those of videos: {', '.join(kinds)}")
                )
        return 1 if report.bad else 0

    def _how_labels_are_given(self) -> str:
        if self.annotations:
            return (
                "the annotations name no labels. Name their column with --label-column, or write "
                '"path label" lines.'
            )
        return (
            f"the videos lie in {self.videos} itself, not in folders of classes. Labels are given "
            "by folders, VIDEOS/CLASS/... or VIDEOS/SPLIT/CLASS/..., or by lists of "
            '"path label" lines (--annotations).'
        )


def _print_splits(splits: dict[str, dict[str, int]], classes: int, seconds: float) -> None:
    rows = [
        (
            name,
            counts["samples"],
            counts["frames"],
            counts["shards"],
            f"{counts['bytes'] / 2**20:.1f}",
        )
        for name, counts in splits.items()
    ]
    print_table("", "split >samples >frames >shards >MiB", rows)
    print(f"{count(classes, 'class')}, {seconds:.1f} s")
