"""`stmeta stream`: run the loader as training would, and say how fast it is and why."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np
from tyro.conf import OmitArgPrefixes, Positional

from stmeta.commands._show import plain, print_bad, print_table, skip_rows
from stmeta.data.loading.loader import ClipLoader, LoaderConfig

_STAGES = ("read", "decode", "augment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Run the loader as training would, and print how fast it is and where time goes.

    Every few seconds: clips and frames a second, the part of the time in which the trainer waits,
    how long batches take, and what the loader's threads do. Samples that were skipped are listed
    with their reasons; the exit code is then 1.
    """

    split: Positional[str]
    """Folder of the split, or its address (http://..., s3://...)."""
    epochs: int = 1
    """Times through the split."""
    batches: int | None = None
    """Stop after so many batches."""
    step_ms: float = 0.0
    """What a training step takes, in milliseconds; with 0, nothing is hidden behind the model."""
    every: float = 5.0
    """Seconds between two lines."""
    json: bool = False
    """Print the result as JSON, and nothing else."""
    loader: OmitArgPrefixes[LoaderConfig] = dataclasses.field(default_factory=LoaderConfig)
    """How clips are chosen, cut and delivered."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batches", 1), ("step_ms", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"stream: {name} must be {least} or more, got {value}")
        if self.every <= 0:
            raise ValueError(f"stream: every must be above 0, got {self.every}")

    def run(self) -> int:
        """Run the command; return the exit code."""
        with ClipLoader(self.split, self.loader) as loader:
            meter = Meter(self.loader.frames)
            if not self.json:
                print(_HEADING)
            try:
                self._stream(loader, meter)
            except KeyboardInterrupt:
                if not meter.waits:
                    raise  # before the first batch there is nothing to tell
            skipped = loader.skipped
            result = meter.result(loader.stats())
        rows = skip_rows(skipped)
        if self.json:
            print(json.dumps(result | {"skips": rows}, indent=1))
        else:
            _print_result(result)
            print_bad("skipped", [(f"{row['shard']}: {row['key']}", row["reason"]) for row in rows])
        return 1 if rows else 0

    def _stream(self, loader: ClipLoader, meter: Meter) -> None:
        """Take batches, and wait after each as long as a training step takes."""
        shown = time.perf_counter()
        for _ in range(self.epochs):
            batches = iter(loader)
            while self.batches is None or len(meter.waits) < self.batches:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                meter.add(len(batch), began, time.perf_counter())
                time.sleep(self.step_ms / 1000)
                meter.end = now = time.perf_counter()
                if now - shown >= self.every and not self.json:
                    shown = now
                    print(_line(meter.interval(loader.stats())), flush=True)


class Meter:
    """Times batches as their user sees them."""

    def __init__(self, frames: int) -> None:
        """Start the clock; `frames` are those of a clip."""
        self.frames = frames
        self.begin = self.end = time.perf_counter()
        self.waits: list[float] = []
        self.clips = 0
        self._seen: dict[str, Any] = {}
        self._last = (self.begin, 0, 0)  # when, batches and clips of the line before

    def add(self, clips: int, began: float, came: float) -> None:
        """A batch was asked for at `began` and came at `came`."""
        self.waits.append(came - began)
        self.clips += clips

    def interval(self, stats: dict[str, Any]) -> dict[str, Any]:
        """What happened since the last call."""
        when, batches, clips = self._last
        spent = {f"{k}_seconds": stats[f"{k}_seconds"] - self._seen.get(k, 0.0) for k in _STAGES}
        self._seen = {k: stats[f"{k}_seconds"] for k in _STAGES}
        found = self._rates(self.waits[batches:], self.clips - clips, self.end - when, spent)
        self._last = (self.end, len(self.waits), self.clips)
        return found | {"at": self.end - self.begin, "skipped": stats["skipped"]}

    def result(self, stats: dict[str, Any]) -> dict[str, Any]:
        """What happened since the start: the loader's own numbers, and the user's."""
        mine = self._rates(self.waits, self.clips, self.end - self.begin, stats)
        first = self.waits[0] if self.waits else 0.0
        return stats | mine | {"batches": len(self.waits), "first_batch_seconds": first}

    def _rates(
        self, waits: list[float], clips: int, seconds: float, stats: dict[str, Any]
    ) -> dict[str, Any]:
        seconds = max(seconds, 1e-9)
        spent = {name: max(0.0, stats[f"{name}_seconds"]) for name in _STAGES}
        total = sum(spent.values()) or 1.0
        p50, p95, p99 = np.percentile(waits or [0.0], [50, 95, 99]) * 1000
        return {
            "clips": clips,
            "elapsed_seconds": seconds,
            "clips_per_second": clips / seconds,
            "frames_per_second": clips * self.frames / seconds,
            "wait_seconds": sum(waits),
            "wait_share": sum(waits) / seconds,
            "batch_ms": {"p50": float(p50), "p95": float(p95), "p99": float(p99)},
            "work_share": {name: value / total for name, value in spent.items()},
        }


_HEADING = (
    "  time   clips/s  frames/s   wait   batch p50 / p95 / p99 ms   read decode augment  skips"
)


def _line(found: dict[str, Any]) -> str:
    ms, work = found["batch_ms"], found["work_share"]
    return (
        f"{found['at']:5.0f}s {found['clips_per_second']:9,.0f} {found['frames_per_second']:9,.0f} "
        f"{found['wait_share']:6.1%} {ms['p50']:10.1f} {ms['p95']:7.1f} {ms['p99']:7.1f} "
        f"{work['read']:6.0%} {work['decode']:6.0%} {work['augment']:7.0%} {found['skipped']:6}"
    )


def _print_result(result: dict[str, Any]) -> None:
    ms, work = result["batch_ms"], result["work_share"]
    hits = result["cache_hits"]
    rows = {
        "decoder": result["decoder"],
        "clips": f"{result['clips']:,} in {result['batches']:,} batches, "
        f"{result['elapsed_seconds']:.1f} s",
        "speed": f"{result['clips_per_second']:,.0f} clips/s, "
        f"{result['frames_per_second']:,.0f} frames/s",
        "first batch": f"{result['first_batch_seconds']:.2f} s",
        "batch": f"p50 {ms['p50']:.1f}, p95 {ms['p95']:.1f}, p99 {ms['p99']:.1f} ms",
        "wait": f"{result['wait_share']:.1%} of the time",
        "threads": ", ".join(f"{name} {share:.0%}" for name, share in work.items())
        + f": {result['bound']}-bound",
        "cache": f"{hits:,} of {hits + result['cache_misses']:,} from memory, "
        f"{result['cache_mib']:.0f} MiB",
        "skipped": f"{result['skipped']:,} samples",
        "storage": f"{result['bytes_read'] / 2**20:,.1f} MiB read",
    }
    if result["retries"]:
        rows["storage"] += (
            f", {result['retries']:,} tries again, {result['read_retry_seconds']:.1f} s lost"
        )
    if blocks := result["disk_cache_hits"] + result["disk_cache_misses"]:
        rows["disk cache"] = f"{result['disk_cache_hits']:,} of {blocks:,} blocks"
    print_table("", "what value", ((k, plain(v)) for k, v in rows.items()))
