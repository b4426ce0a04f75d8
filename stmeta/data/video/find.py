"""Lists the videos under a folder, and whatever is left out there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta.data.video.containers import EXTENSIONS

_SUFFIXES = frozenset(f".{extension}" for extension in EXTENSIONS)


class Files(NamedTuple):
    """What lies under a folder, hidden files and folders left out.

    Attributes:
        videos: paths relative to it, sorted; links are followed, each folder once.
        others: files whose names do not end as videos' do, likewise.
        skipped_folders: folders that are not looked into, and why.
    """

    videos: list[str]
    others: list[str]
    skipped_folders: dict[str, str]


def find_videos(folder: Path) -> list[str]:
    """Paths of the videos under a folder, relative to it, sorted; hidden ones are left out.

    Raises:
        DataError: there is no such folder, or no video in it.
    """
    return list_files(folder).videos


def list_files(folder: Path) -> Files:
    """List the files under a folder.

    Raises:
        DataError: there is no such folder, or no video in it.
    """
    if folder.is_file():
        raise DataError(f"{folder}: this is a file; give the folder that holds the videos")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found, places = Files([], [], {}), {_identity(folder): "the folder itself"}

    def name_of(path: str) -> str:
        return Path(path).relative_to(folder).as_posix()

    def refused(error: OSError) -> None:
        found.skipped_folders[name_of(os.fspath(error.filename))] = (
            f"cannot be read: {error.strerror}"
        )

    for root, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        entered = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            path = os.path.join(root, name)
            try:
                place = _identity(path)
            except OSError as error:
                refused(error)
                continue
            if place in places:  # a loop, or a class that would be there twice
                found.skipped_folders[name_of(path)] = (
                    f"a link to what is there already: {places[place]}"
                )
            else:
                places[place] = name_of(path)
                entered.append(name)
        folders[:] = entered
        for name in files:
            path = os.path.join(root, name)
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in _SUFFIXES:
                found.videos.append(name_of(path))
            elif os.path.exists(path):
                found.others.append(name_of(path))
            else:
                found.skipped_folders[name_of(path)] = "a link that leads nowhere"
    if not found.videos:
        endings = sorted({Path(name).suffix.lower() for name in found.others} - {""})
        there = f"; found {' '.join(endings[:20])}" if endings else ""
        raise DataError(f"{folder}: there are no videos ({' '.join(sorted(_SUFFIXES))}){there}")
    found.videos.sort()
    found.others.sort()
    return found


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
