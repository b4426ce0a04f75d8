"""Makes batches on background threads: reads, decodes, replaces what is damaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from stmeta._errors import DataError
from stmeta.data import augment
from stmeta.data.batch import ClipBatch
from stmeta.data.decode import Choice
from stmeta.data.decode.dali import DaliGraph
from stmeta.data.decode.process import ProcessDecoder
from stmeta.data.engine import DaliEngine, Engine, HostEngine, Item
from stmeta.data.plan import ClipPlan, ClipRequest
from stmeta.data.reader import ClipReader
from stmeta.data.shards import ShardIndex
from stmeta.data.times import Times

_log = logging.getLogger("stmeta.data")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How clips are chosen, cut and delivered."""

    batch_size: int = 32
    frames: int = 16
    """Frames of a clip."""
    stride: int = 1
    """Source frames from one clip frame to the next."""
    align: Literal["auto"] | int = "auto"
    """Clips start at multiples of this. "auto": where shards were made for this stride (`stmeta
    shard --stride`), so that a clip is decoded without the frames between; else 1."""
    size: int = 64
    """Height and width of a clip in pixels."""
    train: bool = True
    """Random order, starts, crops, flips, and whole batches only; or in order, centred, all."""
    views: int = 1
    """Clips per video in an evaluation, next to each other, spread over its length."""
    crop: Literal["resized", "plain"] = "resized"
    """Resize a window of any shape to `size`, or cut size × size pixels out (costs nothing)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that a random resized crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a random resized crop."""
    hflip: float = 0.5
    """Chance of a left-right flip in training."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    processes: Literal["auto"] | int = "auto"
    """Processes that PyAV decodes in; 0 = the threads below. "auto": one for each thread, but none
    where one thread is asked for, or the cache holds all videos."""
    device: str = "auto"
    """Where batches are delivered: auto, cpu, cuda or cuda:N."""
    threads: int = 2
    prefetch: int = 2
    """Batches made ahead of the one that is being used."""
    seed: int = 0
    max_error_rate: float = 0.05
    """Share of unreadable samples above which loading stops with their list."""
    cache_mib: float = 1024
    """Memory for decoded video; a set that fits is decoded once."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "frames", "stride", "size", "views", "threads"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        if self.processes != "auto":
            self._require("processes", self.processes >= 0, "0 or more, or auto")
        if self.align != "auto":
            self._require("align", self.align >= 1, "1 or more, or auto")
        for name in ("prefetch", "cache_mib"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("hflip", "max_error_rate"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        low, high = self.crop_scale
        self._require("crop_scale", 0 < low <= high <= 1, "(low, high), ascending in (0, 1]")
        low, high = self.crop_ratio
        self._require("crop_ratio", 0 < low <= high, "(low, high), ascending and above 0")
        self._require("crop", self.crop in ("resized", "plain"), "resized or plain")
        self._require("decoder", self.decoder in ("auto", "dali", "pyav"), "auto, dali or pyav")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"LoaderConfig: {name} must be {rule}, got {getattr(self, name)!r}")

    def window(self, seed: int, height: int, width: int) -> augment.Window:
        """The window of a clip; see `stmeta.data.augment`.

        Raises:
            DataError: `crop` is "plain" and the frame is smaller than `size`.
        """
        plain = self.crop == "plain"
        if not self.train:
            return augment.centre_window(height, width, size=self.size if plain else None)
        if plain:
            return augment.plain_window(seed, height, width, size=self.size, hflip=self.hflip)
        return augment.random_window(
            seed, height, width, scale=self.crop_scale, ratio=self.crop_ratio, hflip=self.hflip
        )


class Skip(NamedTuple):
    """A sample that was left out, and why."""

    key: str
    shard: str
    reason: str


class Batcher:
    """Turns lists of requests into batches.

    `threads` readers work on clips, a few at a time; one more thread puts batches together, in the
    order in which they were asked for.
    """

    def __init__(
        self,
        index: ShardIndex,
        plan: ClipPlan,
        config: LoaderConfig,
        choice: Choice,
        times: Times,
        *,
        fits: bool,
    ) -> None:
        """Make a batcher; threads and processes start with the first request.

        `fits` says whether the cache holds all videos.

        Raises:
            DataError: too many samples of the index are bad.
        """
        self.index, self.plan, self.config = index, plan, config
        self.device = torch.device(choice.device)
        self.skipped = [Skip(bad.key, bad.shard, bad.error) for bad in index.bad]
        self._total = len(index) + len(self.skipped)
        self._damaged: set[int] = set()
        self._check_rate()
        count = config.processes
        if count == "auto":
            count = 0 if fits or config.threads == 1 or choice.decoder == "dali" else config.threads
        self._source = ProcessDecoder(index.root, count) if count else None
        self.reader = ClipReader(
            index,
            cache_mib=config.cache_mib,
            whole=config.train,
            times=times,
            source=self._source,
        )
        self._engine = self._make_engine(choice, times)
        self._readers: ThreadPoolExecutor | None = None
        self._joiner: ThreadPoolExecutor | None = None
        self._closed = False

    def submit(self, requests: Sequence[ClipRequest], *, replace: bool) -> Future[ClipBatch]:
        """Start on a batch.

        Args:
            requests: its clips.
            replace: put another sample in place of a damaged one; False leaves it out.

        Returns:
            The batch to come, on the host, or where DALI made it. Its error, if any, is DataError.
        """
        if self._closed:
            raise ValueError("ClipLoader: it was closed; make a new one")
        if self._readers is None or self._joiner is None:
            self._readers = ThreadPoolExecutor(self.config.threads, "stmeta-read")
            self._joiner = ThreadPoolExecutor(1, "stmeta-join")
        room = self._engine.make_room(len(requests))
        out = [None] * len(requests) if room is None else list(room.numpy())
        # A task for each clip would cost as much as a small clip; one a thread would leave gaps.
        step = max(1, len(requests) // (4 * self.config.threads))
        parts = [
            self._readers.submit(self._read, requests[i : i + step], out[i : i + step], replace)
            for i in range(0, len(requests), step)
        ]
        return self._joiner.submit(self._join, parts, room, replace)

    def close(self) -> None:
        """Stop the threads; batches that were not made yet are dropped."""
        self._closed = True
        pools = [pool for pool in (self._joiner, self._readers) if pool is not None]
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)
        self._engine.close()
        if self._source is not None:
            self._source.close()

    def _make_engine(self, choice: Choice, times: Times) -> Engine:
        config, window = self.config, self.config.window
        if choice.decoder == "dali":
            graph = DaliGraph(
                batch_size=config.batch_size,
                frames=config.frames,
                size=config.size,
                threads=config.threads,
                device=choice.device,
            )
            return DaliEngine(self.reader, window, times, graph)
        return HostEngine(
            self.reader,
            window,
            times,
            frames=config.frames,
            size=config.size,
            pin=self.device.type == "cuda",
        )

    def _read(
        self, requests: Sequence[ClipRequest], out: Sequence[np.ndarray | None], replace: bool
    ) -> list[Item | None]:
        return [self._item(r, o, replace) for r, o in zip(requests, out, strict=True)]

    def _item(self, planned: ClipRequest, out: np.ndarray | None, replace: bool) -> Item | None:
        """Read a clip or its first readable substitute; None = it is left out."""
        request: ClipRequest | None = planned
        for attempt in range(len(self.index) + 1):
            assert request is not None
            try:
                item = self._engine.prepare(request, self.plan.indices(request), out)
                item.planned = planned
                return item
            except DataError as error:
                self._record(request.sample, str(error))
            except Exception as error:
                info = self.reader.row(request.sample)
                error.add_note(f"while reading sample {info.key!r} of {info.shard}")
                raise
            request = self.plan.substitutes(planned, attempt) if replace else None
            if request is None:
                break
        if replace:
            label = int(self.index.labels[planned.sample])
            raise DataError(f"no sample with label {label} can be read\n{self._listing()}")
        return None

    def _join(
        self, parts: list[Future[list[Item | None]]], room: torch.Tensor | None, replace: bool
    ) -> ClipBatch:
        found = [item for part in parts for item in part.result()]
        places = [place for place, item in enumerate(found) if item is not None]
        if room is not None and len(places) < len(found):
            room = room[places]
        items = [item for item in found if item is not None]
        while True:
            video, failed = self._engine.finish(items, room)
            if not failed:
                return self._batch(items, video)
            for place, reason in failed.items():
                self._record(items[place].request.sample, reason)
            again = [
                self._item(item.planned or item.request, None, replace) if place in failed else item
                for place, item in enumerate(items)
                if replace or place not in failed
            ]
            items = [item for item in again if item is not None]

    def _batch(self, items: list[Item], video: torch.Tensor) -> ClipBatch:
        samples = np.array([item.request.sample for item in items], np.int64)
        frames = (len(items), self.config.frames)
        pts = [item.pts_seconds for item in items if item.pts_seconds is not None]
        batch = ClipBatch(
            video=video.permute(0, 1, 4, 2, 3),
            label=torch.from_numpy(self.index.labels[samples].astype(np.int64)),
            frame_index=torch.from_numpy(
                np.array([item.indices for item in items], np.int64).reshape(frames)
            ),
            pts_seconds=torch.from_numpy(np.array(pts, np.float64).reshape(frames)),
            key=[self.reader.row(int(sample)).key for sample in samples],
        )
        on_host = self.device.type == "cuda" and video.device.type == "cpu"
        return batch.pin_memory() if on_host else batch

    def _record(self, sample: int, reason: str) -> None:
        """Put a damaged sample on the list, once."""
        if sample in self._damaged:
            return
        self._damaged.add(sample)
        info = self.reader.row(sample)
        self.skipped.append(Skip(info.key, info.shard, reason))
        _log.warning("skipped %s of %s: %s", info.key, info.shard, reason)
        self._check_rate()

    def _check_rate(self) -> None:
        if len(self.skipped) > self.config.max_error_rate * self._total:
            raise DataError(
                f"{self.index.root}: {len(self.skipped)} of {self._total} samples cannot be read, "
                f"more than max_error_rate = {self.config.max_error_rate:g}\n{self._listing()}"
            )

    def _listing(self) -> str:
        lines = [f"  {skip.key} ({skip.shard}): {skip.reason}" for skip in self.skipped[:10]]
        more = len(self.skipped) - len(lines)
        return "\n".join(lines + ([f"  ... and {more} more"] if more > 0 else []))
