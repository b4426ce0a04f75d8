"""Keeps one run at a time in a data set's folder, and tells a resumed run from another one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stmeta._errors import DataError
from stmeta.data.sources import Part, Plan

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
            f"{out}: holds a data set or a part of one; go on with --resume, or choose another "
            "folder"
        )
    before = json.loads(path.read_text())
    if before.get("options") != manifest["options"]:
        old, new = before.get("options", {}), manifest["options"]
        changed = ", ".join(f"{k}: {old.get(k)} → {new[k]}" for k in new if old.get(k) != new[k])
        raise DataError(f"{out}: cannot go on with other options ({changed})")
    if before != manifest:
        raise DataError(
            f"{out}: cannot go on, as the videos or their labels changed since it was begun; "
            "choose another folder"
        )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes away with the process.

    Raises:
        DataError: another run is in there.
    """
    handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another run is writing here") from None
        yield
    finally:
        os.close(handle)
