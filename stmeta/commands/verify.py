"""`stmeta verify`: look for damage in shards."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

from rich.markup import escape
from tyro.conf import Positional

from stmeta._util.progress import ProgressBar
from stmeta.commands._show import count, plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Look for damage in shards, and name each bad sample with its reason.

    PATHS are folders of shards, shards, globs, and ranges such as "train/{000000..000007}.tar".
    Prints a line per bad sample: shard, key, the level that it failed, and why. The exit code is 1
    if there is one.
    """

    paths: Positional[tuple[str, ...]]
    """Folders of shards, shards, or patterns."""
    level: Literal["tar", "header", "hash", "decode"] = "header"
    """tar: structure, keys, labels. header: and codec, size, frame count, as the index has them.
    hash: and the sha256 of each video. decode: and every frame; hashes too if there is an index."""
    workers: int | None = None
    """Processes; one per core if left out."""
    on_error: Literal["skip", "fail"] = "skip"
    """After a bad sample, continue or stop."""
    resume: bool = False
    """Write down which shards are done, in verify-LEVEL.json beside them, and continue from there.
    Shards that have not changed since are not read again."""
    json: bool = False
    """Print counts and the bad samples as JSON, without a progress bar."""

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can be continued."""
        return self.resume

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.verify.verifier import verify

        with ProgressBar(hidden=self.json) as bar:
            report = verify(
                self.paths,
                level=self.level,
                workers=self.workers,
                on_error=self.on_error,
                resume=self.resume,
                progress=lambda name, *counts: bar(escape(f"{name}, MiB"), *counts),
            )
        if self.json:
            lists = {
                name: [entry._asdict() for entry in getattr(report, name)]
                for name in ("bad", "remarks")
            }
            print(json.dumps(dataclasses.asdict(report) | lists, indent=1))
            return 1 if report.bad else 0
        for entry in report.remarks:
            print(plain(f"{entry.shard}: {entry.key}: good, but {entry.reason}"))
        for entry in report.bad:
            print(plain(f"{entry.shard}: {entry.key or '(shard)'}: {entry.level}: {entry.reason}"))
        earlier = f" ({report.resumed} of them earlier)" if report.resumed else ""
        print(
            f"{count(report.shards, 'shard')}{earlier}, {count(report.samples, 'sample')}, "
            f"{count(report.frames, 'frame')}, "
            f"{report.bytes / 2**20:.1f} MiB: {len(report.bad) or 'none'} bad at level "
            f"{self.level}, {report.seconds:.1f} s{'; stopped there' if report.stopped else ''}"
        )
        return 1 if report.bad else 0
