"""A set of short clips of many actions from Kinetics-400, Mini-Kinetics-200 and TinyVIRAT.

Clips are at most 100 frames at 10 frames per second, and the split is by class: every class is a
task, and those of `heldout` are never trained on. From the annotation files and videos on disk;
nothing is downloaded.

    stmeta dataset composite --out DATA --kinetics train.csv --kinetics-videos k400/train
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stmeta._errors import DataError
from stmeta.data.datasets.composite_plan import HELD_OUT, CompositePlan, plan_composite
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.job import TOO_SHORT
from stmeta.data.ingest.sharding import IngestReport, Progress, ingest_plan
from stmeta.data.shards.index import ShardIndex

MANIFEST, PICTURE = "manifest.json", "classes.png"


@dataclasses.dataclass(frozen=True)
class CompositeReport:
    """What became of the clips."""

    out: str
    """Folder of the data set."""
    manifest: dict[str, Any]
    """What manifest.json holds; see `build`."""
    seconds: float
    """Time of this run."""

    @property
    def broken(self) -> dict[str, str]:
        """Videos that cannot be read, with reasons; short and missing ones are not among them."""
        refused = self.manifest["refused"].items()
        return {name: reason for name, reason in refused if not reason.startswith(TOO_SHORT)}


def build(
    out: str | os.PathLike[str],
    *,
    kinetics: Sequence[Path] = (),
    kinetics_videos: Sequence[Path] = (),
    minikinetics: Sequence[Path] = (),
    tinyvirat: Sequence[Path] = (),
    tinyvirat_videos: Sequence[Path] = (),
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    frames: int = 100,
    min_frames: int = 10,
    seed: int = 0,
    encode: EncodeOptions | None = None,
    shard_mib: float = 64,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> CompositeReport:
    """Make the data set, manifest.json and classes.png.

    Classes are the same if their names are, but for case, spaces, "_" and punctuation. The first
    label of a clip decides on its split; KEY.json has all of them ("labels", "label_ids"). Clips
    without a label go to train, as -1. A clip keeps the first `frames` frames; a shorter one keeps
    what it has, and readers repeat its last frame.

    manifest.json holds: options; counts per split ("clips", "classes", "short" = fewer than
    `frames`, "unlabelled"), per data set ("listed", "missing", "repeated", "refused", stored per
    split) and per class (label, split, clips per data set, spellings); "across": clips with a
    further label of the other split; names of "missing" clips per reason; "refused" ones with the
    reason.

    Args:
        out: folder of the data set to make.
        kinetics: CSV files of Kinetics.
        kinetics_videos: folders of its videos, in any layout.
        minikinetics: Mini-Kinetics lists; only what is in them is taken of Kinetics.
        tinyvirat: JSON files of TinyVIRAT.
        tinyvirat_videos: folders of its videos.
        test_fraction: part of the classes that becomes heldout.
        val_fraction: part of the clips of each other class that becomes val.
        frames: maximum number of frames of a clip.
        min_frames: clips with fewer are left out.
        seed: of the splits and the order.
        encode: how clips are stored; None = short side 128, 10 frames per second, H.264.
        shard_mib: a shard is closed once its videos pass this many MiB.
        workers: processes; None = one per core.
        resume: continue an interrupted run.
        progress: called after each video.

    Raises:
        DataError: an annotation file or a folder cannot be read, no clip has a video that can be
            read, `out` has data already, or a resumed run differs.
        ValueError: an option is not valid.
    """
    encode = encode or EncodeOptions(fps=10)
    composite = plan_composite(
        kinetics=kinetics,
        kinetics_videos=kinetics_videos,
        minikinetics=minikinetics,
        tinyvirat=tinyvirat,
        tinyvirat_videos=tinyvirat_videos,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        frames=frames,
        min_frames=min_frames,
        seed=seed,
    )
    options = {
        "frames": frames,
        "min_frames": min_frames,
        "test_fraction": test_fraction,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    report = ingest_plan(
        composite.plan,
        Path(),
        out,
        parts=composite.parts,
        made_with=options,
        encode=encode,
        shard_mib=shard_mib,
        workers=workers,
        resume=resume,
        progress=progress,
    )
    options |= dataclasses.asdict(encode)
    manifest = {"version": 1, "options": options, **_counts(composite, report, frames)}
    path = Path(out) / MANIFEST
    partial = path.with_name(path.name + ".tmp")
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    partial.write_bytes(text.encode("utf-8", "replace"))
    os.replace(partial, path)
    if not any(split["clips"] for split in manifest["splits"].values()):
        raise DataError(f"composite: none of the videos can be used; {path} lists the reasons")
    picture(manifest, Path(out) / PICTURE)
    return CompositeReport(str(out), manifest, report.seconds)


def _counts(composite: CompositePlan, report: IngestReport, frames: int) -> dict[str, Any]:
    refused = {bad.source: bad.reason for bad in report.bad}
    splits: dict[str, dict[str, int]] = {}
    datasets: dict[str, Counter[str]] = {
        name: Counter(listed=count, repeated=composite.repeated[name])
        for name, count in sorted(composite.listed.items())
    }
    clips: dict[str, Counter[str]] = {name: Counter() for name in composite.plan.classes}
    across = 0
    for split, sources in composite.plan.splits.items():
        stored = [source for source in sources if source.path not in refused]
        lengths = ShardIndex.open(Path(report.out) / split).frames if stored else []
        splits[split] = {
            "clips": len(stored),
            "classes": len({source.label for source in stored} - {""}),
            "short": sum(int(length) < frames for length in lengths),
            "unlabelled": sum(not source.label for source in stored),
        }
        for source in stored:
            meta = composite.parts[source.path].meta
            datasets[meta["dataset"]][split] += 1
            if source.label:
                clips[source.label][meta["dataset"]] += 1
            others = {composite.class_splits.get(label) for label in meta["labels"]}
            across += len(others - {None}) > 1
    missing: dict[str, list[str]] = {}
    for bad in composite.missing:
        missing.setdefault(bad.reason, []).append(bad.source)
        datasets[bad.source.partition("/")[0]]["missing"] += 1
    for source in composite.parts.keys() & refused.keys():
        datasets[source.partition("/")[0]]["refused"] += 1
    return {
        "splits": splits,
        "datasets": {name: dict(counts) for name, counts in datasets.items()},
        "not_in_minikinetics": composite.left_out,
        "across": across,
        "classes": [
            {
                "name": name,
                "label": label,
                "split": composite.class_splits.get(name, ""),
                "clips": clips[name].total(),
                "datasets": dict(sorted(clips[name].items())),
                "spellings": composite.spellings[name],
            }
            for label, name in enumerate(composite.plan.classes)
        ],
        "missing": missing,
        "refused": refused,
    }


def picture(manifest: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the clips of every class, most first, and by name the 20 largest of each split.

    Args:
        manifest: what manifest.json holds.
        path: PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shades = {"train": "#2a6fbb", HELD_OUT: "#e07b39"}
    classes = [entry for entry in manifest["classes"] if entry["split"]]
    classes.sort(key=lambda entry: (-entry["clips"], entry["name"]))
    figure = Figure(figsize=(10, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.5))
    top = figure.add_subplot(grid[0, :])
    width = 0.9 if len(classes) < 100 else 1.0  # gaps below a pixel would be drawn as stripes
    for split, shade in shades.items():
        bars = [(i, e["clips"]) for i, e in enumerate(classes) if e["split"] == split]
        total = sum(count for _, count in bars)
        name = "test (held out)" if split == HELD_OUT else split
        label = f"{name}: {len(bars):,} classes, {total:,} clips"
        top.bar([i for i, _ in bars], [n for _, n in bars], width, color=shade, label=label)
    top.set(xlabel="classes, largest first", ylabel="clips", xlim=(-1, len(classes)))
    top.set_xticks([])
    top.yaxis.set_major_locator(MaxNLocator(integer=True))
    top.legend(frameon=False)
    named = {split: [e for e in classes if e["split"] == split][:20] for split in shades}
    rows = max(map(len, named.values()))
    for column, (split, largest) in enumerate(named.items()):
        axis = figure.add_subplot(grid[1, column])
        axis.barh(range(len(largest)), [e["clips"] for e in largest], color=shades[split])
        axis.set_yticks(range(len(largest)), [e["name"] for e in largest], fontsize=8)
        axis.set(xlabel="clips", ylim=(rows - 0.4, -0.6))
        axis.set_title("test (held out)" if split == HELD_OUT else split)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    partial = f"{os.fspath(path)}.tmp"
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)
