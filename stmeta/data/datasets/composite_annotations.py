"""Reads the public annotation files of Kinetics-400, Mini-Kinetics-200 and TinyVIRAT.

Kinetics-400 (Kay et al. 2017): CSV files with a header,

    label,youtube_id,time_start,time_end,split[,is_cc]

Times are seconds in the original video. The test file that came without labels has no `label`; its
clips are unlabelled.

Mini-Kinetics-200 (Xie et al. 2018): text files that choose clips of Kinetics by their YouTube id,
one a line. Lists made of them are read too: "label,id,..." with or without a header, and
"CLASS/ID_000010_000020.mp4 12", as video lists for training have it.

TinyVIRAT (Demir et al. 2021): JSON. Version 2 is a list of clips, version 1 an object with that
list under "tubes". Of a clip are used:

    "path"   of the video, relative to the folder of its split, "VIRAT_S_.../000000.mp4"
    "label"  list of class names; missing or empty in the public test file
    "id"     used where there is no "path", as the test videos are called by it

Other fields ("video_id", "dim" = [frames, height, width]) are not needed and are left alone.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stmeta._errors import DataError

_ID = r"[A-Za-z0-9_-]{11}"
_STEM = re.compile(rf"({_ID})(?:_(\d{{6}})_(\d{{6}}))?")


class Listed(NamedTuple):
    """A clip as an annotation file lists it.

    Attributes:
        dataset: "kinetics", "minikinetics" or "tinyvirat".
        name: of the clip, the same wherever its file lies: "ID_000010_000020" or
            "FILE/VIRAT_S_.../000000", FILE being the annotation file without ".json".
        labels: class names as they are written there; empty = unlabelled.
        file: what to look for: a YouTube id, or a path.
        seconds: start and end in the original video (Kinetics).
    """

    dataset: str
    name: str
    labels: tuple[str, ...]
    file: str
    seconds: tuple[float, float] | None = None


class Chosen(NamedTuple):
    """A line of a Mini-Kinetics list: a YouTube id, and the label if there is one."""

    id: str
    label: str


def stem_parts(stem: str) -> tuple[str, tuple[int, int] | None] | None:
    """YouTube id and times of a file called ID or ID_000010_000020; None = another name."""
    match = _STEM.fullmatch(stem)
    if not match:
        return None
    return match[1], (int(match[2]), int(match[3])) if match[2] else None


def read_kinetics(paths: Sequence[Path]) -> list[Listed]:
    """Read CSV files of Kinetics; the columns that its public files have may be in any order.

    Raises:
        DataError: a file cannot be read, lacks a column, or a row has no id or no times.
    """
    found = []
    for path in paths:
        rows = _rows(path)
        columns = [name.strip().lower() for name in rows[0][1]] if rows else []
        for name in ("youtube_id", "time_start", "time_end"):
            if name not in columns:
                raise DataError(
                    f"{path}: has no column {name}; a Kinetics CSV starts with "
                    "label,youtube_id,time_start,time_end,split"
                )
        for line, row in rows[1:]:
            fields = dict(zip(columns, (field.strip() for field in row), strict=False))
            youtube, label = fields.get("youtube_id", ""), fields.get("label", "")
            try:
                seconds = float(fields["time_start"]), float(fields["time_end"])
            except (KeyError, ValueError):
                seconds = 0.0, 0.0
            if not youtube or not 0 <= seconds[0] < seconds[1]:
                raise DataError(f"{path}, line {line}: no id, or no times: {','.join(row)}")
            name = f"{youtube}_{int(seconds[0]):06d}_{int(seconds[1]):06d}"
            labels = (label,) if label else ()
            found.append(Listed("kinetics", name, labels, youtube, seconds))
    return found


def read_minikinetics(paths: Sequence[Path]) -> list[Chosen]:
    """Read lists of YouTube ids; a row of several fields is "label,id,..." or names a file.

    Raises:
        DataError: a file cannot be read, or a line has no id.
    """
    found = []
    for path in paths:
        rows = _rows(path)
        columns = [name.strip().lower() for name in rows[0][1]] if rows else []
        at = columns.index("youtube_id") if "youtube_id" in columns else None
        label_at = columns.index("label") if at is not None and "label" in columns else None
        for line, row in rows[at is not None :]:
            fields = [field.strip() for field in row]
            if at is None:
                chosen = _headless(fields)
            else:
                label = fields[label_at] if label_at is not None else ""
                chosen = Chosen(fields[at], label) if len(fields) > at and fields[at] else None
            if chosen is None:
                raise DataError(f"{path}, line {line}: no YouTube id: {','.join(row)}")
            found.append(chosen)
    return found


def _headless(fields: list[str]) -> Chosen | None:
    """An id alone, "label,id,...", or "CLASS/ID_000010_000020.mp4 12"."""
    # A label may look like an id ("windsurfing"), so the second field goes first.
    for field in (*fields[1:2], fields[0]):
        path = field.rsplit(maxsplit=1)[0] if re.search(r"\s\d+$", field) else field
        folder, _, name = path.rpartition("/")
        parts = stem_parts(re.sub(r"\.[A-Za-z0-9]{2,4}$", "", name))
        if parts:
            label = fields[0] if field is not fields[0] else folder.rpartition("/")[2]
            return Chosen(parts[0], label)
    return None


def choose(clips: Iterable[Listed], chosen: Sequence[Chosen]) -> tuple[list[Listed], list[Listed]]:
    """Take the clips of Kinetics that a Mini-Kinetics list names.

    Returns:
        The chosen clips, as data set "minikinetics", and clips that are in the list alone: they
        have no times, and the label of the list or none.
    """
    names = {entry.id: entry.label for entry in chosen}
    taken = [clip._replace(dataset="minikinetics") for clip in clips if clip.file in names]
    known = {clip.file for clip in taken}
    alone = [
        Listed("minikinetics", youtube, (label,) if label else (), youtube)
        for youtube, label in names.items()
        if youtube not in known
    ]
    return taken, alone


def read_tinyvirat(paths: Sequence[Path]) -> list[Listed]:
    """Read JSON files of TinyVIRAT, version 1 or 2.

    Raises:
        DataError: a file cannot be read, or has another form.
    """
    found = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON: {error}") from error
        clips = content.get("tubes") if isinstance(content, dict) else content
        if not isinstance(clips, list):
            raise DataError(f'{path}: must be a list of clips, or an object with one as "tubes"')
        found += [_tinyvirat_clip(path, number, clip) for number, clip in enumerate(clips)]
    return found


def _tinyvirat_clip(path: Path, number: int, clip: Any) -> Listed:
    fields = clip if isinstance(clip, dict) else {}
    file = str(fields.get("path") or fields.get("id") or "").replace("\\", "/").strip("/")
    label = fields.get("label") or []
    labels = [label] if isinstance(label, str) else label
    if not file or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise DataError(
            f'{path}: clip {number} needs a "path", and names in "label": {json.dumps(clip)[:200]}'
        )
    name = re.sub(r"\.[A-Za-z0-9]{2,4}$", "", file)
    return Listed("tinyvirat", f"{path.stem}/{name}", tuple(x for x in labels if x.strip()), file)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Lines of a CSV file that are not empty, with their numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
