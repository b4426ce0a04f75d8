"""Which clips a composite data set holds: those with a file, classes merged, split by class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta.data.datasets.composite_annotations import (
    Listed,
    choose,
    read_kinetics,
    read_minikinetics,
    read_tinyvirat,
)
from stmeta.data.datasets.composite_files import VideoFiles, class_key
from stmeta.data.ingest.sources import BadSource, Part, Plan, Source, split_off, stable_hash

HELD_OUT = "heldout"
"""The split of the classes that are not trained on: the paper's test split."""


class CompositePlan(NamedTuple):
    """What goes where.

    Attributes:
        plan: splits train, val (if wanted) and heldout; classes of train first, then those of
            heldout, then those that are nowhere a clip's first label. Sources are "DATASET/NAME".
        parts: file, stretch and further labels of each source.
        missing: clips without a file.
        listed: per data set, clips that its annotations list.
        repeated: per data set, clips that were there already.
        left_out: clips of Kinetics that are not in the Mini-Kinetics lists.
        spellings: per class, how often it is written how.
        class_splits: split of each class that is the first label of a clip.
    """

    plan: Plan
    parts: dict[str, Part]
    missing: list[BadSource]
    listed: Counter[str]
    repeated: Counter[str]
    left_out: int
    spellings: dict[str, dict[str, int]]
    class_splits: dict[str, str]


def plan_composite(
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
) -> CompositePlan:
    """List the clips that are there; the arguments are those of `composite.build`.

    Raises:
        DataError: an annotation file or folder cannot be read, or no clip has its file.
        ValueError: an argument is out of range, or annotations or folders are missing.
    """
    _check(test_fraction, val_fraction, frames, min_frames)
    given = (kinetics or minikinetics, kinetics_videos), (tinyvirat, tinyvirat_videos)
    if not any(lists for lists, _ in given):
        raise ValueError("composite: needs annotations: kinetics, minikinetics or tinyvirat")
    for name, (lists, folders) in zip(("kinetics", "tinyvirat"), given, strict=True):
        if bool(lists) != bool(folders):
            raise ValueError(f"composite: {name} needs both its annotations and {name}_videos")
    clips, left_out = read_kinetics(kinetics), 0
    if minikinetics:
        taken, alone = choose(clips, read_minikinetics(minikinetics))
        clips, left_out = taken + alone, len(clips) - len(taken)
    clips += read_tinyvirat(tinyvirat)
    found, missing, repeated = _find_all(
        clips, VideoFiles(kinetics_videos), VideoFiles(tinyvirat_videos)
    )
    if not found:
        reasons = "; ".join(sorted({bad.reason for bad in missing})[:3])
        raise DataError(f"composite: none of {len(clips)} clips listed has its video: {reasons}")
    spellings, found = _merge_classes(found)
    first = {clip.labels[0] for clip, _ in found if clip.labels}
    class_splits = split_classes(first, test_fraction, seed)
    order = {"train": 0, HELD_OUT: 1, "": 2}
    classes = sorted(spellings, key=lambda name: (order[class_splits.get(name, "")], name))
    numbers = {name: number for number, name in enumerate(classes)}
    parts = {}
    for clip, part in found:
        ids = [numbers[label] for label in clip.labels]
        meta = {"dataset": clip.dataset, "labels": list(clip.labels), "label_ids": ids}
        part = part._replace(frames=frames, min_frames=min_frames, meta=meta)
        parts[f"{clip.dataset}/{clip.name}"] = part
    splits = _splits([clip for clip, _ in found], class_splits, val_fraction, seed)
    return CompositePlan(
        plan=Plan(splits, classes, []),
        parts=parts,
        missing=missing,
        listed=Counter(clip.dataset for clip in clips),
        repeated=repeated,
        left_out=left_out,
        spellings=spellings,
        class_splits=class_splits,
    )


def split_classes(classes: Iterable[str], test_fraction: float, seed: int) -> dict[str, str]:
    """Give each class to train or heldout.

    The choice depends on the names and the seed alone. With two classes or more and a fraction
    above 0, both splits get at least one.

    Args:
        classes: names.
        test_fraction: part of the classes that goes to heldout.
        seed: of the choice.

    Returns:
        Split of each class.
    """
    ranked = sorted(classes, key=lambda name: stable_hash(seed, "heldout", class_key(name)))
    count = round(test_fraction * len(ranked))
    if test_fraction and len(ranked) > 1:
        count = min(max(count, 1), len(ranked) - 1)
    return {name: HELD_OUT if i < count else "train" for i, name in enumerate(ranked)}


def _check(test_fraction: float, val_fraction: float, frames: int, min_frames: int) -> None:
    for name, fraction in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"composite: {name} must be at least 0 and below 1, got {fraction}")
    if not 1 <= min_frames <= frames:
        raise ValueError(f"composite: min_frames must be 1 ... frames = {frames}, got {min_frames}")


def _find_all(
    clips: Sequence[Listed], kinetics: VideoFiles, tinyvirat: VideoFiles
) -> tuple[list[tuple[Listed, Part]], list[BadSource], Counter[str]]:
    """Clips with their files, clips without one, and clips per data set that are there twice.

    A clip that is listed again adds its labels to the first.
    """
    found: dict[tuple[str, tuple[float, float] | None], tuple[Listed, Part]] = {}
    missing: list[BadSource] = []
    repeated: Counter[str] = Counter()
    for clip in clips:
        try:
            if unreadable := [label for label in clip.labels if not class_key(label)]:
                raise DataError(f"the label {unreadable[0]!r} has no letter or digit")
            files = tinyvirat if clip.dataset == "tinyvirat" else kinetics
            file, seconds, folder = files.find(clip)
        except DataError as error:
            missing.append(BadSource("", f"{clip.dataset}/{clip.name}", str(error)))
            continue
        if not clip.labels and class_key(folder):
            clip = clip._replace(labels=(folder,))
        place = (file, seconds)
        if place in found:
            repeated[clip.dataset] += 1
            first, part = found[place]
            found[place] = first._replace(labels=first.labels + clip.labels), part
        else:
            found[place] = clip, Part(file, seconds)
    return list(found.values()), missing, repeated


def _merge_classes(
    found: list[tuple[Listed, Part]],
) -> tuple[dict[str, dict[str, int]], list[tuple[Listed, Part]]]:
    """Give every class one name: its most frequent spelling, in lower case, "_" as a space.

    Returns:
        Per class, how often it is written how; and the clips with these names, none twice.
    """
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for clip, _ in found:
        for label in clip.labels:
            written[class_key(label)][label] += 1
    names = {}
    for key, spellings in written.items():
        usual = min(spellings, key=lambda spelling: (-spellings[spelling], spelling))
        names[key] = re.sub(r"[\s_]+", " ", usual).strip().lower()
    renamed = [
        (clip._replace(labels=tuple(dict.fromkeys(names[class_key(x)] for x in clip.labels))), part)
        for clip, part in found
    ]
    return {names[key]: dict(sorted(written[key].items())) for key in sorted(written)}, renamed


def _splits(
    clips: list[Listed], class_splits: dict[str, str], val_fraction: float, seed: int
) -> dict[str, list[Source]]:
    """Sources of each split in mixed order; clips without a label go to train."""
    splits: dict[str, list[Source]] = {"train": []}
    if val_fraction:
        splits["val"] = []
    if HELD_OUT in class_splits.values():
        splits[HELD_OUT] = []
    for clip in clips:
        label = clip.labels[0] if clip.labels else ""
        source = Source(f"{clip.dataset}/{clip.name}", label)
        splits[class_splits.get(label, "train")].append(source)
    if val_fraction:
        splits["train"], splits["val"] = split_off(splits["train"], val_fraction, seed)
    return {
        name: sorted(sources, key=lambda source: stable_hash(seed, source.path))
        for name, sources in splits.items()
    }
