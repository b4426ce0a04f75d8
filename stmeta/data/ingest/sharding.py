"""A user's own videos to a data set of shards, over all cores; an interrupted run can be continued.

Each video is decoded to its end and encoded again, so that what lies in a shard is known to be
whole. `ingest.json` holds the options and a hash of the plan; each split's `shards.jsonl` gets one
line per finished shard. The plan is a pure function of the source folder and the options, so the
two files are enough to continue, and the result does not depend on interruptions or on `workers`.
`ingest_plan` does the same for a plan that was made elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stmeta._errors import DataError
from stmeta._util.workers import ordered_map
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.job import EncodedVideo, Job, encode_part, room
from stmeta.data.ingest.journal import Journal
from stmeta.data.ingest.manifest import claim, fingerprint, locked
from stmeta.data.ingest.sources import BadSource, Part, Plan, Source, plan_sources
from stmeta.data.shards.writer import (
    EncodedSample,
    KeyMaker,
    ShardWriter,
    build_index,
    write_classes,
)

Progress = Callable[[str, int, int, int], None]
"""Called with split, videos done, videos in all, bad ones so far."""


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """What became of the videos."""

    out: str
    """Folder of the data set."""
    classes: list[str]
    """Names; the position is the label."""
    splits: dict[str, dict[str, int]]
    """Per split: samples, shards, bytes, frames."""
    bad: list[BadSource]
    """What could not be stored, with the reason."""
    remarks: list[BadSource]
    """What is worth knowing about videos that were taken in."""
    seconds: float
    """Time of this run."""
    others: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    """Files left out, as their names are not those of videos: by ending, how many, and one."""


def ingest(
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    annotations: Sequence[str] = (),
    path_column: str | None = None,
    label_column: str | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    encode: EncodeOptions | None = None,
    copy: bool = False,
    shard_mib: float = 64,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Make a data set from a folder of videos.

    Args:
        videos: folder of videos.
        out: folder of the data set to make.
        annotations: as in `sources.plan_sources`, like the four arguments after it.
        path_column: column with the path of a video.
        label_column: column with its label.
        val_fraction: part of each class that goes to val.
        seed: of that choice and of the order.
        encode: how videos are stored; None = the defaults.
        copy: copy videos that are stored so already, instead of encoding them again.
        shard_mib: a shard is closed once its videos pass this many MiB.
        workers: processes; None = one per core. 1 = no other process.
        resume: continue an interrupted run; with nothing to continue, start.
        progress: called after each video.

    Raises:
        DataError: there are no videos, `out` has data already, a resumed run differs, or a disk is
            full.
        ValueError: an option is not valid.
        RuntimeError: processes cannot start.
    """
    plan = plan_sources(
        Path(videos),
        annotations,
        path_column=path_column,
        label_column=label_column,
        val_fraction=val_fraction,
        seed=seed,
    )
    return ingest_plan(
        plan,
        videos,
        out,
        encode=encode,
        copy=copy,
        shard_mib=shard_mib,
        workers=workers,
        resume=resume,
        progress=progress,
    )


def ingest_plan(
    plan: Plan,
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    parts: Mapping[str, Part] | None = None,
    made_with: Mapping[str, Any] | None = None,
    encode: EncodeOptions | None = None,
    copy: bool = False,
    shard_mib: float = 64,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Make a data set of what a plan lists; see `ingest`.

    Args:
        plan: names in it are unique.
        videos: folder that the paths of the plan belong to.
        out: folder of the data set to make.
        parts: what to take of which file, by the path in the plan; the others are whole files.
        made_with: options that the plan was made with; a resumed run must have the same.
        encode: as in `ingest`, like the arguments after it.
        copy: has no effect on `parts`.
        shard_mib: size of a shard.
        workers: processes.
        resume: continue an interrupted run.
        progress: called after each video.

    Raises:
        DataError: `out` has data already, a resumed run differs, or a disk is full: the shards that
            were finished are whole then, and the run can go on.
        RuntimeError: processes cannot start.
    """
    begin = time.monotonic()
    videos, out = Path(videos), Path(out)
    encode = encode or EncodeOptions()
    workers = workers or len(os.sched_getaffinity(0))
    options = dataclasses.asdict(encode) | {"copy": copy, "shard_mib": shard_mib}
    options |= made_with or {}
    with room(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out), room(out):
        claim(out, {"version": 1, "options": options, "plan": fingerprint(plan, parts)}, resume)
        write_classes(out, plan.classes)
        bad, remarks, splits, keys = list(plan.bad), [], {}, KeyMaker()
        for split, sources in plan.splits.items():
            named = [(keys(os.path.splitext(source.path)[0]), source) for source in sources]
            wanted = [
                (key, source, (parts or {}).get(source.path) or Part(str(videos / source.path)))
                for key, source in named
            ]
            job = _Split(split, out / split, wanted, plan.classes, encode, copy, shard_mib)
            bad += job.run(workers, progress)
            remarks += job.remarks
            splits[split], more = _finish(out / split, workers)
            bad += more
    seconds = time.monotonic() - begin
    return IngestReport(str(out), plan.classes, splits, bad, remarks, seconds, dict(plan.others))


@dataclasses.dataclass
class _Split:
    name: str
    folder: Path
    sources: list[tuple[str, Source, Part]]
    classes: list[str]
    encode: EncodeOptions
    copy: bool
    shard_mib: float
    remarks: list[BadSource] = dataclasses.field(default_factory=list)

    def run(self, workers: int, progress: Progress | None) -> list[BadSource]:
        """Write the shards that are still missing; return the bad videos of all."""
        self.folder.mkdir(exist_ok=True)
        journal = Journal(self.folder)
        shards, done, bad, self.remarks = journal.read()
        todo = self.sources[done:]
        jobs = [Job(part, self.encode, self.copy) for _, _, part in todo]
        results = ordered_map(encode_part, jobs, min(workers, len(jobs)))
        for part in self._parts(zip(todo, results, strict=True)):
            fresh: list[BadSource] = []
            noted: list[BadSource] = []
            writer: ShardWriter | None = None
            count = 0
            try:
                for (key, source, origin), (_, result) in part:
                    count += 1
                    if isinstance(result, DataError):
                        fresh.append(BadSource(self.name, source.path, str(result)))
                    else:
                        writer = writer or ShardWriter(self.folder / f"{shards:06d}.tar")
                        writer.add(self._sample(key, source, origin, result))
                        if result.source.remark:
                            noted.append(BadSource(self.name, source.path, result.source.remark))
                    if progress:
                        progress(self.name, done + count, len(self.sources), len(bad) + len(fresh))
            except BaseException:
                if writer:
                    writer.abort()
                raise
            size = writer.close() if writer else 0
            shards, done, bad = shards + bool(writer), done + count, bad + fresh
            self.remarks += noted
            journal.add(shards=shards, size=size, sources=done, bad=fresh, remarks=noted)
        return bad

    def _parts(self, results: Iterator[Any]) -> Iterator[Iterator[Any]]:
        """Results, shard by shard; each inner iterator must be used up before the next."""

        def part(result: Any) -> Iterator[Any]:
            size = 0.0
            while result is not None:
                yield result
                encoded = result[1][1]
                size += 0 if isinstance(encoded, DataError) else len(encoded.video)
                result = next(results, None) if size < self.shard_mib * 2**20 else None

        while (first := next(results, None)) is not None:
            yield part(first)

    def _sample(self, key: str, source: Source, part: Part, result: EncodedVideo) -> EncodedSample:
        return EncodedSample(
            key=key,
            video=result.video,
            extension=result.extension,
            label=self.classes.index(source.label) if source.label else -1,
            label_text=source.label,
            source=source.path,
            info=result.info,
            meta={"source_video": result.source._replace(keyframes=())._asdict(), **part.meta},
        )


def _finish(folder: Path, workers: int) -> tuple[dict[str, int], list[BadSource]]:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        return {"samples": 0, "shards": 0, "bytes": 0, "frames": 0}, []
    index = build_index(folder, workers=workers, must_save=True)
    counts = {
        "samples": len(index),
        "shards": len(shards),
        "bytes": sum(path.stat().st_size for path in shards),
        "frames": int(index.frames.sum()),
    }
    return counts, [
        BadSource(folder.name, f"{row.shard}: {row.key}", row.error) for row in index.bad
    ]
