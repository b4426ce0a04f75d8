"""The `stmeta` command: makes and indexes data sets.

stmeta shard VIDEOS/ --out DATA/
stmeta index DATA/train
stmeta dataset motions
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, subcommand

from stmeta._errors import DataError
from stmeta.data.progress import ProgressBar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Turn a folder of videos into a data set of shards.

    Labels come from the folders (VIDEOS/CLASS/*.mp4 or VIDEOS/SPLIT/CLASS/*.mp4) or from CSV files.
    Videos that cannot be read are listed with the reason; the others are kept, and the exit code
    is 1. A run that was stopped goes on with --resume.
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
    short_side: int | Literal["source"] = 128
    """Larger videos are scaled down to this short side, in pixels."""
    fps: float | Literal["source"] = 12.5
    """Frames per second."""
    codec: Literal["h264", "hevc", "vp8", "vp9", "av1", "mjpeg"] = "h264"
    """Codec; DALI decodes vp8, vp9 and mjpeg on a CPU, and the others on an NVIDIA GPU."""
    gop: int = 16
    """Frames from one key frame to the next; short groups make random clips cheap."""
    crf: int | None = None
    """Quality on the codec's own scale, lower is better."""
    copy: bool = False
    """Copy videos that are stored so already, instead of encoding them again."""
    shard_mib: float = 64
    """Size of a shard."""
    workers: int | None = None
    """Processes; one per core if left out."""
    resume: bool = False
    """Go on with a run that was stopped."""
    json: bool = False
    """Print the result as JSON, without a progress bar."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.encode import EncodeOptions
        from stmeta.data.ingest import ingest

        encode = EncodeOptions(
            short_side=None if self.short_side == "source" else self.short_side,
            fps=None if self.fps == "source" else self.fps,
            codec=self.codec,
            gop=self.gop,
            crf=self.crf,
        )
        with ProgressBar(hidden=self.json) as bar:
            report = ingest(
                self.videos,
                self.out,
                annotations=self.annotations,
                path_column=self.path_column,
                label_column=self.label_column,
                val_fraction=self.val_fraction,
                seed=self.seed,
                encode=encode,
                copy=self.copy,
                shard_mib=self.shard_mib,
                workers=self.workers,
                resume=self.resume,
                progress=bar,
            )
        if self.json:
            bad = [entry._asdict() for entry in report.bad]
            print(json.dumps(dataclasses.asdict(report) | {"bad": bad}, indent=1))
        else:
            _print_splits(report.splits, len(report.classes), report.seconds)
            _print_bad([(entry.source, entry.reason) for entry in report.bad])
        return 1 if report.bad else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Index the shards of a split again, such as shards from elsewhere."""

    split: Positional[Path]
    """Folder with the shards (*.tar)."""
    workers: int = 1
    """Processes."""
    full: bool = False
    """Read all shards again, also those that did not change."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.shards import build_index

        index = build_index(self.split, workers=self.workers, full=self.full)
        bad = [(f"{row.shard}: {row.key}", row.error) for row in index.bad]
        if self.json:
            rows = [{"source": source, "reason": reason} for source, reason in bad]
            counts = {"samples": len(index), "frames": int(index.frames.sum()), "bad": rows}
            print(json.dumps(counts, indent=1))
        else:
            frames = int(index.frames.sum())
            print(f"{self.split}: {len(index)} samples, {frames} frames, {len(bad)} bad")
            _print_bad(bad)
        return 1 if bad else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Make a built-in data set, if it is not there yet, and print its folder."""

    name: Positional[Literal["motions"]]
    """motions: drawn clips of 24 kinds of motion."""
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


_Command = (
    Annotated[Shard, subcommand("shard")]
    | Annotated[Index, subcommand("index")]
    | Annotated[Dataset, subcommand("dataset")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (bad data) or 2 (wrong use)."""
    command = tyro.cli(_Command, args=args, prog="stmeta", description=__doc__)
    try:
        code = command.run()
    except (DataError, ValueError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(str(error))}", highlight=False
        )
        code = 1 if isinstance(error, DataError) else 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume", file=sys.stderr)
        code = 130
    sys.exit(code)


def _print_splits(splits: dict[str, dict[str, int]], classes: int, seconds: float) -> None:
    table = Table("split", "samples", "frames", "shards", "MiB")
    for name, counts in splits.items():
        size = f"{counts['bytes'] / 2**20:.1f}"
        columns = (counts["samples"], counts["frames"], counts["shards"])
        table.add_row(name, *map(str, columns), size)
    console = Console()
    console.print(table)
    console.print(f"{classes} classes, {seconds:.1f} s", highlight=False)


def _print_bad(bad: list[tuple[str, str]]) -> None:
    if bad:
        print(f"{len(bad)} could not be taken in:")
        for source, reason in bad:
            # A name that is not UTF-8 must not stop the list.
            print(f"  {source}: {reason}".encode("utf-8", "replace").decode())


if __name__ == "__main__":
    main()
