"""Finds the videos of Kinetics and TinyVIRAT in folders of any layout."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta.data.datasets.composite_annotations import Listed, stem_parts
from stmeta.data.video.find import find_videos

_NOT_CLASSES = frozenset("train val valid validate validation test videos".split())
_MISSING = "the file is missing"


def class_key(label: str) -> str:
    """What the spellings of a class have in common: letters and digits, in lower case."""
    text = unicodedata.normalize("NFKC", label).casefold()
    # Marks belong to letters in many scripts.
    return "".join(x for x in text if x.isalnum() or unicodedata.category(x)[0] == "M")


class _File(NamedTuple):
    path: str
    folder: str  # name of the class folder that it lies in; "" = none
    times: tuple[int, int] | None  # as its name has them


class VideoFiles:
    """Video files, by YouTube id and by the name without its extension."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """List the videos in folders.

        Raises:
            DataError: there is no such folder, or no video in it.
        """
        self._by_id: dict[str, list[_File]] = defaultdict(list)
        self._by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
        for root in folders:
            for name in find_videos(root):
                path = PurePosixPath(name)
                self._by_stem[path.stem].append(PurePosixPath(root.as_posix(), path))
                if parts := stem_parts(path.stem):
                    folder = path.parent.name
                    folder = "" if folder.lower() in _NOT_CLASSES else folder
                    file = _File(str(root / name), folder, parts[1])
                    self._by_id[parts[0]].append(file)

    def find(self, clip: Listed) -> tuple[str, tuple[float, float] | None, str]:
        """Find the video of a clip.

        Files of Kinetics are called ID_000010_000020 and hold the clip, or ID and hold it or the
        whole video.

        Returns:
            The path; the seconds of the clip, where the file may hold more; the class folder.

        Raises:
            DataError: there is none, or it is not clear which.
        """
        if clip.dataset == "tinyvirat":
            return self._by_path(clip), None, ""
        found = self._by_id.get(clip.file, [])
        if not found:
            raise DataError(_MISSING)
        if clip.seconds is None:
            cut = [file for file in found if file.times]
            if len({file.times for file in cut}) != 1:
                raise DataError("its times are not known; give the Kinetics CSV too")
            file = _likely(cut, clip)
            return file.path, None, file.folder
        times = int(clip.seconds[0]), int(clip.seconds[1])
        if exact := [file for file in found if file.times == times]:
            return _likely(exact, clip).path, None, ""
        if whole := [file for file in found if not file.times]:
            return _likely(whole, clip).path, clip.seconds, ""
        raise DataError(f"{_MISSING}; other clips of the same video are there")

    def _by_path(self, clip: Listed) -> str:
        wanted = PurePosixPath(clip.file).with_suffix("")
        count = len(wanted.parts)
        found = [
            path
            for path in self._by_stem.get(wanted.name, [])
            if path.with_suffix("").parts[-count:] == wanted.parts
        ]
        if len(found) > 1:
            # Videos of different splits may have the same path; the annotation file says which.
            words = {"train", "val", "test"} & set(re.split(r"[^a-z]+", clip.name.lower()))
            found = [path for path in found if words & set(path.parts[-count - 1 :])] or found
        if len(found) > 1:
            raise DataError(f"{len(found)} files have this path; give the folder of one version")
        if not found:
            raise DataError(_MISSING)
        return str(found[0])


def _likely(files: list[_File], clip: Listed) -> _File:
    """The file in the folder of the clip's class, or the first."""
    labels = {class_key(label) for label in clip.labels}
    return min(files, key=lambda file: (class_key(file.folder) not in labels, file.path))
