"""Verifies shards: their structure, each video's header, its hash, every frame of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stmeta._errors import DataError
from stmeta._util.workers import ordered_map
from stmeta.data.shards.classes import read_classes
from stmeta.data.shards.index import BadSample
from stmeta.data.shards.index_file import INDEX_NAME, load
from stmeta.data.shards.paths import find_shards
from stmeta.data.shards.tar_index import SampleInfo, bad_sample
from stmeta.data.verify.state import ShardRecord, VerifyState, stamp
from stmeta.data.verify.tar import check_tar
from stmeta.data.verify.video import LEVELS, VideoFaults, VideoJob, check_video

__all__ = ["LEVELS", "BadSample", "VerifyReport", "verify"]

Progress = Callable[[str, int, int, int], None]
"""Called with folder, MiB done, MiB in all, bad ones so far."""
_COLUMNS = [
    "key",
    "offset",
    "size",
    "label",
    "codec",
    "width",
    "height",
    "frames",
    "error",
    "sha256",
]


@dataclasses.dataclass
class VerifyReport:
    """What a verification found."""

    level: str
    """How far it went."""
    shards: int = 0
    """Shards that were read to their end, those of an earlier run included."""
    resumed: int = 0
    """Shards of them that an earlier run had read."""
    samples: int = 0
    frames: int = 0
    """Frames of the samples, as their headers declare them."""
    bytes: int = 0
    """Size of the shards."""
    bad: list[BadSample] = dataclasses.field(default_factory=list)
    remarks: list[BadSample] = dataclasses.field(default_factory=list)
    """What is worth knowing about samples that are good."""
    stopped: bool = False
    """Whether it ended at the first bad sample."""
    seconds: float = 0.0


def verify(
    paths: Sequence[str | os.PathLike[str]],
    *,
    level: str = "header",
    workers: int | None = None,
    on_error: str = "skip",
    resume: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Verify shards and say what is wrong with each bad sample.

    Args:
        paths: folders of shards, shards, glob or brace patterns.
        level: "tar": structure, keys, label and frame count; "header": and what `probe` says, the
            same as .nframes and the index; "hash": and the video's sha256, against the index's;
            "decode": and every frame. Hashes are compared before decoding where there is an index.
        workers: processes; None = one per core. 1 = no other process.
        on_error: "skip" continues after a bad sample, "fail" stops.
        resume: keep `verify-LEVEL.json` in each folder, and leave out the shards that an earlier
            run has read and that have not changed since, nor their index.
        progress: called after each sample.

    Raises:
        DataError: a folder or pattern names no shards.
        ValueError: an option or pattern is not valid.
    """
    if level not in LEVELS or on_error not in ("skip", "fail"):
        raise ValueError(
            f"verify: level must be one of {', '.join(LEVELS)} and on_error skip or fail, got "
            f"{level!r} and {on_error!r}"
        )
    begin = time.monotonic()
    run = _Run(find_shards(paths), level, resume, progress)
    # Without videos to read there is nothing to share out.
    workers = 1 if level == "tar" else workers or len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        stack.callback(run.save)
        results = ordered_map(check_video, run.jobs(), workers)
        stack.callback(results.close)  # type: ignore[attr-defined]
        for job, found in results:
            if isinstance(found, DataError):
                found = VideoFaults([*job.faults, (level, str(found))], 0)
            run.take(job, found)
            if run.report.bad and on_error == "fail":
                run.report.stopped = True
                break
    run.report.seconds = time.monotonic() - begin
    return run.report


class _Run:
    """One verification: makes the jobs, shard by shard, and adds up what they find."""

    def __init__(
        self,
        folders: dict[Path, list[Path]],
        level: str,
        resume: bool,
        progress: Progress | None,
    ) -> None:
        self.folders, self.level, self.resume = folders, level, resume
        self.progress, self.report = progress, VerifyReport(level)
        self.states: dict[Path, VerifyState] = {}
        self.open: dict[str, ShardRecord] = {}  # shards whose jobs are on their way
        self.done = dict.fromkeys(folders, 0)
        self.sizes = {path: max(0, stamp(path)[0]) for group in folders.values() for path in group}
        self.total = {
            folder: sum(self.sizes[p] for p in group) for folder, group in folders.items()
        }

    def jobs(self) -> Iterator[VideoJob]:
        """A job for each sample, and one without a key at the end of each shard."""
        for folder, shards in self.folders.items():
            classes, index = read_classes(folder), _Index(folder, self.level)
            if self.resume:
                self.states[folder] = VerifyState(folder, self.level, classes)
            if index.problem:
                yield self._note(folder / INDEX_NAME, index.problem)
            for path in shards:
                record = self.states[folder].get(path) if self.resume else None
                if record:
                    self._take_over(path, record)
                    continue
                # The time is taken before reading: a shard that changes meanwhile is read again.
                self.open[str(path)] = ShardRecord(stamp(path))
                yield from self._shard(path, classes, index.rows(path.name))

    def _shard(
        self, path: Path, classes: list[str] | None, rows: dict[str, SampleInfo] | None
    ) -> Iterator[VideoJob]:
        samples, tar_faults = check_tar(path, classes)
        faults = [("tar", reason) for reason in tar_faults]
        if rows == {} and path.exists():
            faults.append(("header", "the index does not list this shard; run `stmeta index`"))
        rows = rows or None
        for sample in samples:
            offset, size = sample.members.get(sample.field, (0, 0))
            yield VideoJob(
                path=str(path),
                key=sample.key,
                offset=offset,
                size=size,
                label=sample.label,
                frames=sample.frames,
                faults=[("tar", reason) for reason in sample.faults],
                level=self.level,
                indexed=rows is not None,
                expected=(rows or {}).get(sample.key),
            )
        # A row without a key stands for a shard that could not be indexed.
        for key in {*(rows or ())} - {sample.key for sample in samples} - {""}:
            yield self._note(path, "it is in the index, but not in the shard", key)
        yield self._note(path)._replace(faults=faults)

    def _note(self, path: Path, reason: str = "", key: str = "") -> VideoJob:
        """A job without a video."""
        faults = [("header", reason)] if reason else []
        return VideoJob(str(path), key, 0, 0, -1, -1, faults, self.level, False, None)

    def take(self, job: VideoJob, found: VideoFaults) -> None:
        """Add the result of a job."""
        report, path, record = self.report, Path(job.path), self.open.get(job.path)
        bad = []
        if found.faults:
            reason = "; ".join(dict.fromkeys(reason for _, reason in found.faults))
            bad = [BadSample(job.path, job.key, reason, found.faults[0][0])]
        noted = [BadSample(job.path, job.key, found.remark, "header")] if found.remark else []
        report.bad += bad
        report.remarks += noted
        report.samples += bool(job.key)
        report.frames += found.frames
        if record:
            record.samples += bool(job.key)
            record.frames += found.frames
            record.bad += [[entry.key, entry.level, entry.reason] for entry in bad]
            record.remarks += [[entry.key, entry.level, entry.reason] for entry in noted]
            if not job.key:
                self._finish(path, self.open.pop(job.path))
        if self.progress:
            folder = path.parent
            done = self.done[folder] + (job.offset + job.size if job.key else 0)
            total = self.total[folder]
            self.progress(str(folder), _mib(min(done, total)), _mib(total), len(report.bad))

    def _finish(self, path: Path, record: ShardRecord) -> None:
        self.report.shards += 1
        self.report.bytes += self.sizes[path]
        self.done[path.parent] += self.sizes[path]
        if path.parent in self.states:
            self.states[path.parent].add(path, record)

    def _take_over(self, path: Path, record: ShardRecord) -> None:
        """Add what an earlier run has found."""
        report = self.report
        report.shards, report.resumed = report.shards + 1, report.resumed + 1
        report.samples, report.frames = (
            report.samples + record.samples,
            report.frames + record.frames,
        )
        report.bytes += self.sizes[path]
        report.bad += _from_record(path, record.bad)
        report.remarks += _from_record(path, record.remarks)
        self.done[path.parent] += self.sizes[path]

    def save(self) -> None:
        """Write down what was finished."""
        for state in self.states.values():
            state.save()


class _Index:
    """What the index of a folder says, whether or not it is older than the shards."""

    def __init__(self, folder: Path, level: str) -> None:
        self.problem = ""
        self._table: pa.Table | None = None
        path = folder / INDEX_NAME
        if level == "tar":
            return
        if not path.is_file():
            if level == "hash":
                self.problem = "there is no index to compare hashes with; `stmeta index` makes one"
            return
        self._table, _, reason = load(path, details=True)
        if reason:
            self.problem = f"{reason}; run `stmeta index`"

    def rows(self, shard: str) -> dict[str, SampleInfo] | None:
        """Rows of a shard by key; None = there is no index. Only the columns compared are set."""
        if self._table is None:
            return None
        names = self._table["shard"].cast(pa.string())
        part = self._table.filter(pc.call_function("equal", [names, pa.scalar(shard)]))
        rows = part.select(_COLUMNS).to_pylist()
        return {row["key"]: bad_sample(shard, "")._replace(**row) for row in rows}


def _from_record(path: Path, entries: list[list[str]]) -> list[BadSample]:
    return [BadSample(str(path), key, reason, level) for key, level, reason in entries]


def _mib(size: int) -> int:
    return -(-size >> 20) if size else 1
