"""Keeps one run at a time in a data set's folder, and tells a resumed run from another one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stmeta._errors import DataError
from stmeta._util.locks import lock_folder
from stmeta.data.ingest.sources import Part, Plan

MANIFEST = "ingest.json"


def fingerprint(plan: Plan, parts: Mapping[str, Part] | None = None) -> str:
    """Hash of what goes where; where the files lie does not matter."""
    what: list[Any] = [plan.splits, plan.classes]
    if parts:
        what.append({path: part._replace(file="") for path, part in parts.items()})
    text = json.dumps(what)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def claim(out: Path, manifest: dict[str, Any], resume: bool) -> None:
    """Write the manifest, or check that the one there is the same.

    Raises:
        DataError: the folder has other data, or `resume` is needed, or what to do has changed.
    """
    path = out / MANIFEST
    if not path.exists():
        if any(out.glob("*/*.tar")):
            raise DataError(f"{out}: holds shards already; choose another folder")
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(partial, path)
        return
    if not resume:
        raise DataError(
            f"{out}: holds a data set or a part of one; continue with --resume, or choose another "
            "folder"
        )
    before = _read(path)
    if before["options"] != manifest["options"]:
        old, new = before["options"], manifest["options"]
        changed = ", ".join(f"{k}: {old.get(k)} → {new[k]}" for k in new if old.get(k) != new[k])
        raise DataError(f"{out}: cannot continue with other options ({changed})")
    if before != manifest:
        raise DataError(
            f"{out}: cannot continue, as the videos or their labels have changed since the start; "
            "choose another folder"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged, no JSON: {error}; choose another folder") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("options"), dict):
        raise DataError(f"{path}: is no manifest of a data set; choose another folder")
    return manifest


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes away with the process.

    Raises:
        DataError: another run is in there.
    """
    with lock_folder(out) as mine:
        if not mine:
            raise DataError(f"{out}: another run is writing here")
        yield
