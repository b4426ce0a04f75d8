"""classes.json: the names of the labels of a data set; and which of them are trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stmeta._errors import DataError

MAX_LABELS = 2**20
"""More classes are none: a list of their names is made, and a classifier has an output for each."""


def read_classes(split_dir: str | os.PathLike[str]) -> list[str] | None:
    """Class names of a split, from classes.json above it or in it; None = there is no such file.

    Raises:
        DataError: the file is not a list of names.
    """
    for folder in (Path(split_dir).absolute().parent, Path(split_dir)):
        path = folder / "classes.json"
        if not path.is_file():
            continue
        return parse_classes(path.read_bytes(), str(path))
    return None


def parse_classes(content: bytes, name: str) -> list[str]:
    """Class names from the content of a file; `name` is for errors.

    Raises:
        DataError: it is not a list of names.
    """
    try:
        names = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}") from error
    if not are_names(names):
        raise DataError(f"{name}: must be a list of names, one per label, at most {MAX_LABELS}")
    return names


def are_names(names: Any) -> bool:
    """Whether something read from a file is a list of names that can be printed."""
    if not isinstance(names, list) or len(names) > MAX_LABELS:
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    try:
        "".join(names).encode()
    except UnicodeEncodeError:  # half of a character: JSON can write that
        return False
    return True


def write_classes(folder: str | os.PathLike[str], classes: Sequence[str]) -> None:
    """Write classes.json into a data set's folder.

    Raises:
        DataError: the folder has other names already.
    """
    path = Path(folder) / "classes.json"
    text = json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n"
    if path.exists():
        if parse_classes(path.read_bytes(), str(path)) == list(classes):
            return
        raise DataError(
            f"{path}: lists other classes, so labels would change their meaning; "
            "choose another folder"
        )
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class TrainedClasses(NamedTuple):
    """The classes that a training split has samples of; a classifier has one output for each.

    Labels number all classes of a data set, also those that are held out or that only another split
    has; outputs number the classes that can be learnt, in the order of their labels.

    Attributes:
        labels: of each output, ascending.
        names: likewise.
    """

    labels: list[int]
    names: list[str]


def trained_classes(labels: np.ndarray, names: Sequence[str]) -> TrainedClasses:
    """The classes that occur.

    Args:
        labels: int64 [n], of the training split; -1 = unlabelled.
        names: of all labels.
    """
    found: list[int] = np.unique(labels[labels >= 0]).tolist()
    return TrainedClasses(found, [names[label] for label in found])
