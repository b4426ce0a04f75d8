"""`stmeta index`: index the shards of a split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tyro.conf import Positional

from stmeta.commands._show import count, print_bad


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Index the shards of a split again, or shards that other tools wrote."""

    split: Positional[Path]
    """Folder with the shards (*.tar)."""
    workers: int = 1
    """Processes."""
    full: bool = False
    """Read all shards again, also those that have not changed."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.shards.writer import build_index

        index = build_index(self.split, workers=self.workers, full=self.full)
        bad = [(f"{row.shard}: {row.key}", row.error) for row in index.bad]
        if self.json:
            rows = [{"source": source, "reason": reason} for source, reason in bad]
            counts = {"samples": len(index), "frames": int(index.frames.sum()), "bad": rows}
            print(json.dumps(counts, indent=1))
        else:
            frames = int(index.frames.sum())
            print(
                f"{self.split}: {count(len(index), 'sample')}, {count(frames, 'frame')}, "
                f"{len(bad)} bad"
            )
            print_bad("cannot be used", bad)
        return 1 if bad else 0
