"""Names of shards as people write them: folders, files, globs and ranges in braces."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from stmeta._errors import DataError


def find_shards(paths: Sequence[str | os.PathLike[str]]) -> dict[Path, list[Path]]:
    """Shards by folder, in the order in which they are named; a shard that is missing is kept.

    Raises:
        DataError: a folder or pattern names no shards.
        ValueError: a pattern cannot be expanded, or is an address.
    """
    if not paths:
        raise ValueError("verify: needs at least one folder, shard or pattern, got none")
    folders: dict[Path, dict[Path, None]] = {}  # inner dicts: each shard once, in order
    for name in map(str, paths):
        found = [shard for part in _braces(name) for shard in _expand(part)]
        # Of a range one shard may be missing, which is for the report; a lone name is a mistake.
        if not any(shard.exists() for shard in found):
            raise DataError(f"{name}: there is no such file or folder, and no file matches it")
        for shard in found:
            folders.setdefault(shard.parent, {})[shard] = None
    return {folder: list(shards) for folder, shards in folders.items()}


def _expand(name: str) -> list[Path]:
    """Shards that a folder, a file's name or a glob pattern stands for."""
    if re.match(r"(pipe:|[a-z0-9]+://)", name):
        raise ValueError(f"verify: shards must be local files, got {name!r}; copy them here first")
    path = Path(name)
    if path.is_dir():
        if shards := sorted(path.glob("*.tar")):
            return shards
        splits = sorted({str(shard.parent) for shard in path.glob("*/*.tar")})
        hint = f"; did you mean {' '.join(splits)}?" if splits else ""
        raise DataError(f"{path}: there are no shards (*.tar){hint}")
    if path.exists() or not glob.has_magic(name):
        return [path]
    # A pattern such as train/* also matches the index and other files beside the shards.
    matches = [Path(match) for match in sorted(glob.glob(name))]
    return [
        shard
        for match in matches
        for shard in (sorted(match.glob("*.tar")) if match.is_dir() else [match])
        if shard.suffix == ".tar"
    ]


def _braces(text: str) -> list[str]:
    if "{" not in text or os.path.exists(text):
        return [text]
    try:
        return list(braceexpand(text))
    except ValueError as error:  # its UnbalancedBracesError
        raise ValueError(f"verify: the braces in {text!r} do not match: {error}") from error
