"""Reads a user's annotation files, and finds the videos that they mean."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from stmeta._errors import DataError
from stmeta.data.video.containers import EXTENSIONS

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
_VIDEO = re.compile(rf".+\.({'|'.join(EXTENSIONS)})", re.IGNORECASE)
_VIDEO_AND_MORE = re.compile(rf"(.+\.(?:{'|'.join(EXTENSIONS)}))(?:\s+(\S.*))?", re.IGNORECASE)


def split_of(entry: str) -> tuple[str, Path]:
    """Take "SPLIT=file.csv" apart; a plain path belongs to train."""
    match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", entry)
    if match and not Path(entry).exists():
        return match[1], Path(match[2])
    return "train", Path(entry)


def read_rows(
    path: Path, path_column: str | None, label_column: str | None
) -> list[tuple[int, str, str]]:
    """Line number, path and label of every row; the label is "" where there is no such column.

    A file without a header is a list of lines "path label", with a space, comma, semicolon or tab
    between them, as VideoMAE, mmaction2 and SlowFast write them.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            if not (path_column or label_column) and _is_list(header, delimiter):
                return _read_list(path, file, delimiter if delimiter in header else None)
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


def _is_list(line: str, delimiter: str) -> bool:
    """Whether the first line of a file is a row already: a video's name, or a label's number."""
    fields = _fields(line.strip(), delimiter if delimiter in line else None)
    if any(field.lower() in (*_PATH_COLUMNS, *_LABEL_COLUMNS) for field in fields):
        return delimiter not in line and len(fields) == 2 and fields[0].lower() in _PATH_COLUMNS
    numbers = [field for field in fields[1:] if field.isdigit()]
    return bool(fields) and (bool(_VIDEO.fullmatch(fields[0])) or bool(numbers))


def _read_list(
    path: Path, lines: Iterable[str], delimiter: str | None
) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in enumerate(lines, 1):
        fields = _fields(line.strip(), delimiter)
        if not fields or (number == 1 and fields[0].lower() in _PATH_COLUMNS):
            continue
        if len(fields) > 2:
            raise DataError(
                f"{path}, line {number}: without a header, a line has a path and a label, got "
                f"{len(fields)} fields; name the columns in a first line, and with --path-column "
                "and --label-column"
            )
        rows.append((number, fields[0], fields[1] if len(fields) == 2 else ""))
    return rows


def _fields(line: str, delimiter: str | None) -> list[str]:
    """Fields of a line; None = between spaces, of which the path may have some of its own."""
    if delimiter is not None:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    found = _VIDEO_AND_MORE.fullmatch(line)
    if found:
        return [found[1], *(found[2] or "").split()]
    return line.rsplit(None, 1)


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
        hint = ""
        if {"youtube_id", "time_start"} <= lower.keys():
            hint = (
                "; it is a list of Kinetics, which `stmeta dataset composite --kinetics FILE "
                "--kinetics-videos FOLDER` reads"
            )
        raise DataError(
            f"{path}: none of the columns {', '.join(columns)[:200]} is called "
            f"{' or '.join(wanted)}; name the column with {option}{hint}"
        )
    return None


class Finder:
    """Finds files by path, by path without extension, by name and by stem, in that order.

    A file that is no video by its name is found by its path or name in full: whoever lists it means
    it.
    """

    def __init__(self, videos: Path, files: list[str], others: Sequence[str] = ()) -> None:
        self.root = os.path.join(os.path.abspath(videos), "")
        self.tables: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
        for file in files:
            path = PurePosixPath(file)
            keys = (file, str(path.with_suffix("")), path.name, path.stem)
            for table, key in zip(self.tables, keys, strict=True):
                table[key].append(file)
        self.others: dict[str, list[str]] = defaultdict(list)
        for file in others:
            for key in {file, PurePosixPath(file).name}:
                self.others[key].append(file)

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
            (self.others, str(path)),
            (self.others, path.name),
        ):
            found = table.get(key, [])
            if len(found) > 1:
                found = [file for file in found if label in PurePosixPath(file).parts[:-1]] or found
            if len(found) == 1:
                return found[0]
            if found:
                raise DataError(f"several files have this name: {', '.join(found[:3])}")
        raise DataError("the file is missing")
