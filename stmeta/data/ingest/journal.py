"""A split's `shards.jsonl`: a line for each finished shard, so that `--resume` can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stmeta.data.ingest.sources import BadSource

JOURNAL = "shards.jsonl"


class Finished(NamedTuple):
    """What earlier runs have finished of a split.

    Attributes:
        shards: complete ones.
        sources: videos that are in them, or that were refused.
        bad: the refused ones.
        remarks: what is worth knowing about the others.
    """

    shards: int
    sources: int
    bad: list[BadSource]
    remarks: list[BadSource]


class Journal:
    """Reads and writes the journal of a split."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL

    def read(self) -> Finished:
        """What is finished; files and lines past that are removed."""
        found = Finished(0, 0, [], [])
        lines = (
            self.path.read_text(errors="replace").splitlines(keepends=True)
            if self.path.exists()
            else []
        )
        good = []
        for line in lines:
            record = journal_record(line)
            if record is None:  # the run was interrupted while it wrote this line
                break
            path = self.folder / f"{record['shards'] - 1:06d}.tar"
            if record["size"] and (not path.exists() or path.stat().st_size != record["size"]):
                break
            found = Finished(
                record["shards"],
                record["next"],
                found.bad + [BadSource(*entry) for entry in record["bad"]],
                found.remarks + [BadSource(*entry) for entry in record.get("remarks", [])],
            )
            good.append(line)
        if good != lines:  # not in place: without its journal, a shard would be made again
            partial = self.path.with_name(f"{JOURNAL}.tmp")
            with open(partial, "w") as file:
                file.write("".join(good))
            os.replace(partial, self.path)
        for path in [*self.folder.glob("*.tar"), *self.folder.glob("*.idx")]:
            if not path.stem.isdigit() or int(path.stem) >= found.shards:
                path.unlink()
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        return found

    def add(
        self,
        *,
        shards: int,
        size: int,
        sources: int,
        bad: Sequence[BadSource],
        remarks: Sequence[BadSource],
    ) -> None:
        """Record that a shard is finished.

        Args:
            shards: finished so far.
            size: bytes of the last one; 0 = no video was left for it.
            sources: videos so far.
            bad: those of this shard that were refused.
            remarks: what is worth knowing about the others.
        """
        record = {"shards": shards, "size": size, "next": sources, "bad": bad, "remarks": remarks}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def journal_record(line: str) -> dict[str, Any] | None:
    """What a line of a split's journal says; None = it is not whole, or says something else."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
        numbers = [record[name] for name in ("shards", "size", "next")] if record else [-1]
        entries = [*record["bad"], *record.get("remarks", [])] if record else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if any(type(number) is not int or number < 0 for number in numbers):
        return None
    if not all(isinstance(entry, list) and len(entry) == 3 for entry in entries):
        return None
    return record
