"""Reads a user's annotation files, and finds the videos that they mean."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stmeta._errors import DataError

_PATH_COLUMNS = (
    "path",
    "file",
    "fname",
    "filename",
    "video",
    "file_name",
    "filepath",
    "video_path",
    "clip",
)
_LABEL_COLUMNS = ("label", "class", "action", "label_name", "class_name")


def split_of(entry: str) -> tuple[str, Path]:
    """Take "SPLIT=file.csv" apart; a plain path belongs to train."""
    match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", entry)
    if match and not Path(entry).exists():
        return match[1], Path(match[2])
    return "train", Path(entry)


def read_rows(
    path: Path, path_column: str | None, label_column: str | None
) -> list[tuple[int, str, str]]:
    """Line number, path and label of every row; the label is "" where there is no such column."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=delimiter, restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            path_name = _column(path, columns, path_column, _PATH_COLUMNS, "--path-column")
            label_name = _column(
                path, columns, label_column, _LABEL_COLUMNS, "--label-column", needed=False
            )
            return [
                (
                    reader.line_num,
                    row[path_name].strip(),
                    (row[label_name] if label_name else "").strip(),
                )
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error


def _column(
    path: Path,
    columns: list[str],
    chosen: str | None,
    usual: Sequence[str],
    option: str,
    *,
    needed: bool = True,
) -> str | None:
    wanted = [chosen] if chosen else usual
    lower = {column.lower(): column for column in reversed(columns)}
    for name in wanted:
        if name in columns or name.lower() in lower:
            return name if name in columns else lower[name.lower()]
    if needed or chosen:
        raise DataError(
            f"{path}: none of the columns {', '.join(columns)} is called {' or '.join(wanted)}; "
            f"name the column with {option}"
        )
    return None


class Finder:
    """Finds files by path, by path without extension, by name and by stem, in that order."""

    def __init__(self, videos: Path, files: list[str]) -> None:
        self.root = os.path.join(os.path.abspath(videos), "")
        self.tables: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
        for file in files:
            path = PurePosixPath(file)
            keys = (file, str(path.with_suffix("")), path.name, path.stem)
            for table, key in zip(self.tables, keys, strict=True):
                table[key].append(file)

    def find(self, value: str, label: str) -> str:
        """Return the one file that an annotation means.

        Raises:
            DataError: there is none, or there are several.
        """
        value = value.replace("\\", "/")
        if value.startswith("/"):
            value = os.path.normpath(value).removeprefix(self.root)
        path = PurePosixPath(value)
        if not path.name:
            raise DataError("the path is empty")
        by_path, by_path_stem, by_name, by_stem = self.tables
        # What follows the last dot may be an extension or, in "clip.v2", a part of the stem.
        for table, key in (
            (by_path, str(path)),
            (by_path_stem, str(path)),
            (by_path_stem, str(path.with_suffix(""))),
            (by_name, path.name),
            (by_stem, path.name),
            (by_stem, path.stem),
        ):
            found = table.get(key, [])
            if len(found) > 1:
                found = [file for file in found if label in PurePosixPath(file).parts[:-1]] or found
            if len(found) == 1:
                return found[0]
            if found:
                raise DataError(f"several files have this name: {', '.join(found[:3])}")
        raise DataError("the file is missing")
