"""Clips per second of the loader, beside other readers of the same clips and FFmpeg alone.

Random clips of 16 frames, stride 4, to uint8 batches of 32 at 64 x 64, on two threads or processes,
cold cache of decoded frames. Every way runs in a process of its own; they take turns in rounds.

    python -m benchmarks.bench_loader DATA/train ... [--stride 4] [--results loader.json]

DATA/train is a split of H.264 videos. Other readers are left out, with the reason, where they are
not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks._machine import describe
from benchmarks._measure import copy_bandwidth
from stmeta.data.shards.writer import ShardIndex

WAYS = ("stmeta", "torchcodec", "decord", "pyav", "webdataset", "raw")
SHAPE = {"frames": 16, "stride": 4, "size": 64, "batch": 32}
ROOT = Path(__file__).parents[1]
_NAMES = {"raw": "FFmpeg alone", "stmeta": "**stmeta**", "pyav": "PyAV"}
_NAMES["webdataset"] = "webdataset + PyAV"


def compare(split: Path, *, seconds: float, rounds: int, shape: dict[str, int]) -> dict[str, Any]:
    """Clips per second of every way, the median of the rounds, and why a way is missing."""
    index = ShardIndex.open(split)
    span = (shape["frames"] - 1) * shape["stride"] + 1
    rates: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = {
            **shape,
            "split": str(split),
            "tars": [str(path) for path in sorted(split.glob("*.tar"))],
            "clips": _clips(index, Path(folder), span),
            "seconds": seconds,
        }
        for _ in range(rounds):
            for way in WAYS:
                if way in left_out:
                    continue
                path = Path(folder) / "job.json"
                path.write_text(json.dumps({**job, "way": way}))
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks._loader_peers", str(path)],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                if done.returncode:
                    left_out[way] = (done.stderr.strip().splitlines() or ["no output"])[-1]
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                rates.setdefault(way, []).append(found["clips"] / found["seconds"])
    medians = {way: statistics.median(values) for way, values in rates.items()}
    return {
        "split": split.parent.name,
        "videos": len(index),
        **shape,
        "clips_per_second": medians,
        "rounds": rates,
        "left_out": left_out,
    }


def _clips(index: ShardIndex, folder: Path, span: int) -> list[tuple[str, int]]:
    """Files of the videos, with a random start of a clip in each."""
    draw, clips = random.Random(0), []
    for number in range(len(index)):
        row = index.row(number)
        if row.frames < span:
            continue
        path = folder / f"{row.key}.{row.extension}"
        with open(index.root / row.shard, "rb") as shard:
            shard.seek(row.offset)
            path.write_bytes(shard.read(row.size))
        clips.append((str(path), draw.randrange(row.frames - span + 1)))
    if not clips:
        raise SystemExit(f"{index.root}: no video has the {span} frames of a clip; lower --stride")
    draw.shuffle(clips)
    return clips


def show(result: dict[str, Any], console: Console) -> None:
    """A table: clips per second, and as a share of FFmpeg alone and of the best other reader."""
    rates = result["clips_per_second"]
    others = [rate for way, rate in rates.items() if way not in ("stmeta", "raw")]
    table = Table("way", "clips/s", "of FFmpeg alone", "of the best other")
    for way in sorted(rates, key=rates.__getitem__, reverse=True):
        share = f"{rates[way] / rates['raw']:.2f}" if "raw" in rates else "-"
        other = f"{rates[way] / max(others):.2f}" if others else "-"
        table.add_row(way, f"{rates[way]:.0f}", share, other)
    console.print(f"{result['split']}: {result['videos']} videos", highlight=False)
    console.print(table)
    for way, reason in result["left_out"].items():
        console.print(f"{way} is left out: {reason}", highlight=False)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of clips per second, a panel for each data set."""
    figure = Figure(figsize=(4.6 * len(results), 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, result in zip(panels, results, strict=True):
        rates = dict(sorted(result["clips_per_second"].items(), key=lambda item: item[1]))
        colours = ["#2a6fbb" if way == "stmeta" else "#b8bec6" for way in rates]
        axis.barh(list(rates), list(rates.values()), color=colours)
        axis.bar_label(axis.containers[0], fmt="%.0f", padding=3)
        axis.set(title=result["split"], xlabel="clips per second")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)


def markdown(columns: list[tuple[str, dict[str, float]]]) -> str:
    """The table of docs/data.md: clips per second, a column for each title and its results."""
    first = columns[0][1]
    order = sorted(first, key=lambda way: (way != "raw", way != "stmeta", -first[way]))
    lines = [
        f"| | {' | '.join(title for title, _ in columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for way in order:
        rates = (rates.get(way) for _, rates in columns)
        cells = ("-" if rate is None else f"{rate:.0f}" for rate in rates)
        lines.append(f"| {_NAMES.get(way, way)} | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.full
def test_loader(benchmark: Any, tmp_path: Path) -> None:
    """The built-in clips, one short round: every way that is there delivers."""
    from stmeta.data.datasets import motions

    split = motions.build() / "train"
    shape = {**SHAPE, "stride": 1, "size": 48}
    result = benchmark.pedantic(
        compare, (split,), {"seconds": 2.0, "rounds": 1, "shape": shape}, rounds=1
    )
    show(result, Console())
    assert result["clips_per_second"]["stmeta"] > 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_loader", description=__doc__)
    parser.add_argument("splits", type=Path, nargs="*")
    parser.add_argument("--seconds", type=float, default=5.0, help="per way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=SHAPE["stride"])
    parser.add_argument("--size", type=int, default=SHAPE["size"])
    parser.add_argument("--results", type=Path, help="JSON; a picture goes beside it")
    parser.add_argument(
        "--column",
        nargs=2,
        action="append",
        metavar=("FILE", "TITLE"),
        help="print results again: a column of a Markdown table; may be given again",
    )
    arguments = parser.parse_args()
    if arguments.column:
        sets = [
            (title, json.loads(Path(file).read_text())["sets"]) for file, title in arguments.column
        ]
        print(markdown([(title, found[0]["clips_per_second"]) for title, found in sets]))
        return
    if not arguments.splits:
        parser.error("name a split, or --column")
    console, results = Console(), []
    for split in arguments.splits:
        shape = {**SHAPE, "stride": arguments.stride, "size": arguments.size}
        results.append(
            compare(split, seconds=arguments.seconds, rounds=arguments.rounds, shape=shape)
        )
        show(results[-1], console)
    if arguments.results:
        text = json.dumps({"machine": describe(copy_bandwidth("cpu")), "sets": results}, indent=1)
        arguments.results.write_text(text + "\n")
        plot(results, arguments.results.with_suffix(".png"))
        console.print(f"saved {arguments.results} and its picture")


if __name__ == "__main__":
    main()
