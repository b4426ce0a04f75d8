"""Ways to load the clips of a split, each measured a few seconds at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import torch

from stmeta._errors import DataError
from stmeta.data.decode.sample import VideoPlace
from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.profile.raw_decode import RawDecode
from stmeta.data.profile.usage import usage
from stmeta.data.shards.index import ShardIndex

_STAGES = ("read", "decode", "augment")
_RAW_CLIPS = 256


class Candidate(Protocol):
    """One way: measured a slot at a time, because a machine's speed changes."""

    def slot(self, seconds: float) -> None:
        """Run for so long."""
        ...

    def result(self) -> dict[str, Any]:
        """What was found, over all slots."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class LoaderCandidate:
    """The loader, with some settings."""

    def __init__(self, index: ShardIndex, config: LoaderConfig) -> None:
        """Open a loader and take its first batch."""
        self.waits: list[float] = []
        self.rates: list[float] = []
        self.sums = dict.fromkeys(("clips", "hit", "miss", "cpu", "rss", *_STAGES), 0.0)
        began = time.perf_counter()
        self.loader = ClipLoader(index, config)
        try:
            self.stream = _endless(self.loader)
            next(self.stream)
            self.first_seconds = time.perf_counter() - began
        except BaseException:
            self.loader.close()
            raise

    def slot(self, seconds: float) -> None:
        """See `Candidate`."""
        for _ in range(self.loader.config.prefetch + 1):  # made while others were measured
            next(self.stream)
        used, stats = usage(), self.loader.stats()
        clips, began = 0, time.perf_counter()
        now = began
        while now - began < seconds:
            asked = now
            clips += len(next(self.stream))
            now = time.perf_counter()
            self.waits.append(now - asked)
        if torch.device(self.loader.choice.device).type == "cuda":
            torch.cuda.synchronize()
        self.rates.append(clips / (time.perf_counter() - began))
        after, now_used = self.loader.stats(), usage()
        self.sums["clips"] += clips
        for name in _STAGES:
            self.sums[name] += after[f"{name}_seconds"] - stats[f"{name}_seconds"]
        self.sums["hit"] += after["cache_hits"] - stats["cache_hits"]
        self.sums["miss"] += after["cache_misses"] - stats["cache_misses"]
        self.sums["cpu"] += now_used.cpu_since(used)
        self.sums["rss"] += now_used.rss_bytes - used.rss_bytes
        self.loader.wait_for_prefetch()  # or the next way would pay for them

    def fill(self, seconds: float) -> str:
        """Read every video into the cache, for so long at most; returns why it is not full."""
        until = time.perf_counter() + seconds
        for view in range(self.loader.sampler.views):
            for _ in self.loader.sweep(view):
                if time.perf_counter() > until:
                    return f"filling the memory takes longer than {seconds:.0f} s"
        kept = len(self.loader.collator.reader.decoded)
        wanted = len(self.loader.index) - len(self.loader.skipped) + len(self.loader.index.bad)
        return "" if kept >= wanted else f"{kept} of {wanted} videos are kept, as others are long"

    def result(self) -> dict[str, Any]:
        """See `Candidate`."""
        sums = self.sums
        total = sum(sums[name] for name in _STAGES) or 1.0
        p50, p95, p99 = (float(ms) for ms in np.percentile(self.waits, [50, 95, 99]) * 1000)
        return {
            **_rates(self.rates, self.loader.config.frames),
            "first_batch_ms": self.first_seconds * 1000,
            "batch_ms": {"p50": p50, "p95": p95, "p99": p99},
            "cpu_ms_per_clip": 1000 * sums["cpu"] / sums["clips"],
            "rss_growth_mib": sums["rss"] / 2**20,
            "from_memory": sums["hit"] / max(1.0, sums["hit"] + sums["miss"]),
            "work_share": {name: sums[name] / total for name in _STAGES},
            "skipped": len(self.loader.skipped),
        }

    def close(self) -> None:
        """See `Candidate`."""
        self.loader.close()


class CachedBatchCandidate(LoaderCandidate):
    """One finished batch, handed out again and again: what a trainer could take at most.

    All that the loader does besides making batches is done: the plan, the queue, the transfer.
    """

    def __init__(self, index: ShardIndex, config: LoaderConfig) -> None:
        super().__init__(index, config)
        collator, requests = self.loader.collator, self.loader.sampler.batch(0, 0)
        batch = collator.submit(requests, replace=config.train).result()
        self.pool = pool = ThreadPoolExecutor(1, "stmeta-join")
        cast(Any, collator).submit = lambda requests, *, replace: pool.submit(lambda: batch)

    def result(self) -> dict[str, Any]:
        """See `Candidate`."""
        empty = {"first_batch_ms": None, "from_memory": 1.0, "work_share": {}, "skipped": 0}
        return super().result() | empty

    def close(self) -> None:
        """See `Candidate`."""
        super().close()
        self.pool.shutdown()


class RawDecodeCandidate:
    """FFmpeg alone on the frames of the first clips, a process for each of the loader's threads."""

    def __init__(self, loader: ClipLoader) -> None:
        """Take the clips that a loader would read first."""
        sampler, collator, places = loader.sampler, loader.collator, []
        count = -(-_RAW_CLIPS // loader.config.batch_size)
        for number in range(min(len(loader), count)):
            for request in sampler.batch(0, number):
                row = loader.index.row(request.sample)
                place = VideoPlace(
                    row.shard, row.offset, row.size, row.frames, row.rotation, float(row.fps)
                )
                places.append((place, collator.indices(request)))
        self.frames = loader.config.frames
        self.raw = RawDecode(loader.index.root, places, loader.config.threads)
        self.rates: list[float] = []
        self.clips = self.cpu = 0.0

    def slot(self, seconds: float) -> None:
        """See `Candidate`."""
        shares = self.raw.run(seconds)
        self.rates.append(sum(share.clips / share.seconds for share in shares))
        self.clips += sum(share.clips for share in shares)
        self.cpu += sum(share.cpu_seconds for share in shares)

    def result(self) -> dict[str, Any]:
        """See `Candidate`."""
        return {
            **_rates(self.rates, self.frames),
            "first_batch_ms": None,
            "batch_ms": None,
            "cpu_ms_per_clip": 1000 * self.cpu / self.clips,
            "rss_growth_mib": None,
            "from_memory": 0.0,
            "work_share": {},
            "skipped": 0,
        }

    def close(self) -> None:
        """See `Candidate`."""
        self.raw.close()


def _endless(loader: ClipLoader) -> Iterator[ClipBatch]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise DataError(f"{loader.index.root}: no sample can be read")


def _rates(rates: list[float], frames: int) -> dict[str, Any]:
    median = float(np.median(rates))
    return {
        "clips_per_second": median,
        "frames_per_second": median * frames,
        "rounds": rates,
    }
