"""Finds a user's videos and their labels: class folders, or CSV files with paths and labels."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stmeta._errors import DataError
from stmeta.data.ingest.annotations import Finder, read_rows, split_of
from stmeta.data.video.find import list_files

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("heldout", "held_out", "held-out"), "heldout"),
}


class Source(NamedTuple):
    """One video to take in.

    Attributes:
        path: relative to the folder of videos, with "/".
        label: name of its class; "" = unlabelled.
    """

    path: str
    label: str


class BadSource(NamedTuple):
    """Something that could not be stored.

    Attributes:
        split: where it was meant to go.
        source: path, or file and line of the annotation.
        reason: why.
    """

    split: str
    source: str
    reason: str


class Part(NamedTuple):
    """Which stretch of which file a source stands for, where it is not all of one.

    Attributes:
        file: path of the video.
        seconds: start and end; None = from the start of the file. A file that is at most a second
            longer than this is taken for one that was cut to it before.
        frames: maximum number of frames to store; None = all.
        min_frames: a video with fewer is refused.
        meta: more entries for the JSON of the sample.
    """

    file: str
    seconds: tuple[float, float] | None = None
    frames: int | None = None
    min_frames: int = 1
    meta: Mapping[str, Any] = {}


class Plan(NamedTuple):
    """What goes where.

    Attributes:
        splits: sources of each split, in the order in which they will lie.
        classes: names, those of train first; the position is the label.
        bad: annotations without a video, and videos and folders that are in no split.
        others: files whose names are not those of videos, left out: how many of each
            ending, and one of them.
    """

    splits: dict[str, list[Source]]
    classes: list[str]
    bad: list[BadSource]
    others: Mapping[str, tuple[int, str]] = {}


def plan_sources(
    videos: Path,
    annotations: Sequence[str] = (),
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> Plan:
    """List the videos of a folder with their splits and labels.

    Args:
        videos: VIDEOS/<class>/..., VIDEOS/<split>/<class>/..., or anything with annotations.
        annotations: "file.csv" or "SPLIT=file.csv", or lists of "path label" lines; empty = labels
            come from the folders.
        path_column: column with the path, name or stem of a video; None = found by its name.
        label_column: column with the label; None = found by its name.
        val_fraction: part of each class that goes from train to val.
        seed: of that choice and of the order.

    Raises:
        DataError: there are no videos, or an annotation file cannot be read.
        ValueError: `val_fraction` is not in [0, 1), or val is given already.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"shard: val_fraction must be at least 0 and below 1, got {val_fraction}")
    found = list_files(videos)
    files, bad = (
        found.videos,
        [BadSource("", path, reason) for path, reason in found.skipped_folders.items()],
    )
    if annotations:
        finder, splits = Finder(videos, files, found.others), defaultdict(list)
        for entry in annotations:
            split, path = split_of(entry)
            rows = read_rows(path, path_column, label_column)
            splits[split] += _match(rows, finder, split, path.name, bad)
        _drop_repeated(splits, bad)
    else:
        splits = _by_folder(files, bad)
    if val_fraction:
        if splits.get("val"):
            raise ValueError("shard: val_fraction needs a data set without a val split; it has one")
        splits["train"], splits["val"] = split_off(splits.get("train", []), val_fraction, seed)
    # Mixed order: whoever reads shards from front to back then sees the classes mixed.
    ordered = {
        name: sorted(sources, key=lambda source: stable_hash(seed, source.path))
        for name, sources in splits.items()
    }
    taken = {source.path for sources in ordered.values() for source in sources}
    others: dict[str, tuple[int, str]] = {}
    for path in found.others:
        if path not in taken:
            ending = PurePosixPath(path).suffix.lower() or "no ending"
            others[ending] = (others.get(ending, (0, ""))[0] + 1, path)
    return Plan(ordered, _classes(ordered), bad, others)


def _classes(splits: Mapping[str, Sequence[Source]]) -> list[str]:
    """Names in the order of their labels: those of train first, by number or by name."""
    names = {source.label for sources in splits.values() for source in sources} - {""}
    trained = {source.label for source in splits.get("train", ())}

    def place(name: str) -> tuple[bool, bool, int, str]:
        number = int(name) if re.fullmatch("[0-9]{1,18}", name) else -1
        return name not in trained, number < 0, number, name

    return sorted(names, key=place)


def _by_folder(files: list[str], bad: list[BadSource]) -> dict[str, list[Source]]:
    """The class is the first folder; the second one, where the first are splits.

    They are where all are called so and have folders in them, or where two are: a class may be
    called "train", but not beside one called "test". Videos beside the splits are named in `bad`.
    """
    parts = [PurePosixPath(path).parts for path in files]
    tops = {part[0] for part in parts if len(part) > 1 and part[0].lower() in _SPLITS}
    split_first = len({_SPLITS[top.lower()] for top in tops}) > 1 or all(
        len(part) > 2 and part[0] in tops for part in parts
    )
    splits: dict[str, list[Source]] = defaultdict(list)
    beside: Counter[str] = Counter()
    for path, part in zip(files, parts, strict=True):
        if split_first and (len(part) == 1 or part[0] not in tops):
            beside[part[0]] += 1
            continue
        split = _SPLITS[part[0].lower()] if split_first else "train"
        folders = part[1:-1] if split_first else part[:-1]
        label = os.fsencode(folders[0]).decode("utf-8", "replace") if folders else ""
        splits[split].append(Source(path, label))
    for name, count in beside.items():
        where = f"beside the splits {', '.join(sorted(tops))} and in none of them"
        bad.append(
            BadSource("", name, f"{count} video(s) left out, {where}; move them, or use a list")
        )
    return splits


def split_off(
    sources: list[Source], fraction: float, seed: int
) -> tuple[list[Source], list[Source]]:
    """Take a fraction out of each class; a class of two or more gives and keeps at least one.

    Args:
        sources: to be divided.
        fraction: of each class, in [0, 1).
        seed: of the choice.

    Returns:
        What is left, and what was taken out.
    """
    by_class: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_class[source.label].append(source)
    chosen: set[Source] = set()
    for members in by_class.values():
        members.sort(key=lambda source: stable_hash(seed, "val", source.path))
        count = round(fraction * len(members))
        chosen.update(members[: min(max(count, 1), len(members) - 1)])
    return [s for s in sources if s not in chosen], [s for s in sources if s in chosen]


def stable_hash(*parts: object) -> bytes:
    """Hash what the parts look like as text; the same on every machine."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()


def _match(
    rows: list[tuple[int, str, str]], finder: Finder, split: str, name: str, bad: list[BadSource]
) -> list[Source]:
    found = []
    for line, value, label in rows:
        try:
            found.append(Source(finder.find(value, label), label))
        except DataError as error:
            bad.append(BadSource(split, f"{value} ({name}, line {line})", str(error)))
    return found


def _drop_repeated(splits: dict[str, list[Source]], bad: list[BadSource]) -> None:
    """Keep a video only where it is named first: one in two splits would leak."""
    seen: dict[str, str] = {}
    for split, sources in splits.items():
        kept = []
        for source in sources:
            if source.path in seen:
                bad.append(BadSource(split, source.path, f"listed already, in {seen[source.path]}"))
            else:
                seen[source.path] = split
                kept.append(source)
        sources[:] = kept
