"""Remembers which shards of a folder were verified, so that `--resume` can continue."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stmeta.data.shards.index import INDEX_NAME

_VERSION = 1
_SECONDS = 2.0  # between two writes: the file is written as a whole, and shards may be thousands
_log = logging.getLogger("stmeta.data")


def stamp(path: Path) -> list[int]:
    """Size and time of a file, which tell whether it changed; [-1, -1] = there is none."""
    try:
        stat = path.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


@dataclasses.dataclass
class ShardRecord:
    """What became of one shard."""

    stamp: list[int]
    samples: int = 0
    frames: int = 0
    bad: list[list[str]] = dataclasses.field(default_factory=list)
    """[key, level, reason] each."""
    remarks: list[list[str]] = dataclasses.field(default_factory=list)
    """The same, of good samples."""


class VerifyState:
    """`verify-LEVEL.json` in a folder: a record for each shard that was read to its end.

    It counts for nothing once the index or the classes have changed.
    """

    def __init__(self, folder: Path, level: str, classes: Sequence[str] | None) -> None:
        self.path = folder / f"verify-{level}.json"
        names = None if classes is None else list(classes)
        self.basis = {"version": _VERSION, "index": stamp(folder / INDEX_NAME), "classes": names}
        self.shards = self._load()
        self._saved = time.monotonic()
        self._changed = False

    def get(self, shard: Path) -> ShardRecord | None:
        """The record of a shard that has not changed since."""
        record = self.shards.get(shard.name)
        return record if record and record.stamp == stamp(shard) else None

    def add(self, shard: Path, record: ShardRecord) -> None:
        """Remember a shard."""
        self.shards[shard.name] = record
        self._changed = True
        if time.monotonic() - self._saved > _SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all; where that is not possible, say so and go on."""
        if not self._changed:
            return
        shards = {name: dataclasses.asdict(record) for name, record in self.shards.items()}
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            partial.write_text(json.dumps(self.basis | {"shards": shards}), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            _log.warning(
                "%s cannot be written, so a stop would cost the work: %s", self.path, error
            )
        finally:
            partial.unlink(missing_ok=True)
        self._saved, self._changed = time.monotonic(), False

    def _load(self) -> dict[str, ShardRecord]:
        try:
            known: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            shards = known.pop("shards")
            records = {name: _record(**record) for name, record in shards.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.warning("%s cannot be read, so all shards are verified: %s", self.path, error)
            return {}
        return records if known == self.basis else {}


def _record(**values: Any) -> ShardRecord:
    """A record from a file; TypeError = it is none."""
    record = ShardRecord(**values)
    numbers = [*record.stamp, record.samples, record.frames]
    if {*map(type, numbers)} != {int} or len(record.stamp) != 2:
        raise TypeError("a record has other types")
    for entry in [*record.bad, *record.remarks]:
        if len(entry) != 3 or {*map(type, entry)} != {str}:
            raise TypeError("an entry is not key, level and reason")
    return record
