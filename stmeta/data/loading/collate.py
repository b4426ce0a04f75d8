"""Makes batches on background threads: reads, decodes, replaces what is damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from stmeta._errors import DataError
from stmeta._util.timers import Times
from stmeta.data.decode import Choice
from stmeta.data.decode.dali import DaliGraph
from stmeta.data.decode.process import ProcessDecoder
from stmeta.data.loading.bad_samples import Quarantine
from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.loading.dali_engine import DaliEngine
from stmeta.data.loading.engine import Engine, HostEngine, Item
from stmeta.data.loading.reader import ClipReader
from stmeta.data.loading.sampler import ClipPlan, ClipRequest
from stmeta.data.shards.writer import ShardIndex
from stmeta.data.storage.folder import StorageError

_log = logging.getLogger("stmeta.data")


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
        self.skipped = skips(index)
        self._total = len(index) + len(self.skipped)
        self._quarantine = Quarantine()
        self._check_rate()
        count = config.processes
        if count == "auto":
            # What two threads lose by Python's lock is less than what goes between processes. Clips
            # that start where shards allow have few packets, and threads seldom meet.
            alone = config.threads <= 2 or choice.decoder == "dali" or plan.align > 1
            count = 0 if fits or alone else config.threads
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
        self._home = 0  # the process whose threads these are

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
        self.require_here()
        if self._readers is None or self._joiner is None:
            self._home = os.getpid()
            self._readers = ThreadPoolExecutor(self.config.threads, "stmeta-read")
            self._joiner = ThreadPoolExecutor(1, "stmeta-join")
        room = self._engine.make_room(len(requests))
        out = [None] * len(requests) if room is None else list(room.numpy())
        begins = _group_begins(requests)
        # A task for each clip would cost as much as a small clip; one a thread would leave gaps.
        step = max(1, len(begins) // (4 * self.config.threads))
        bounds = [*begins[::step], len(requests)]
        parts = [
            self._readers.submit(self._read, requests[i:j], out[i:j], replace)
            for i, j in pairwise(bounds)
        ]
        return self._joiner.submit(self._join, parts, room, replace)

    def require_here(self) -> None:
        """Threads are not there after a fork, and what waits for them waits for ever.

        Raises:
            ValueError: the loader was used before this process was forked.
        """
        if self._home not in (0, os.getpid()):
            raise ValueError(
                "ClipLoader: it was used before this process was forked, and its threads stayed "
                "behind; make a loader in each process, or start processes with spawn"
            )

    @property
    def processes(self) -> int:
        """Processes that decode; 0 = this one does."""
        return self._source.count if self._source else 0

    def close(self) -> None:
        """Stop the threads; batches that were not made yet are dropped."""
        self._closed = True
        if self._home not in (0, os.getpid()):
            return  # all that it holds is the other process's
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
            return DaliEngine(self.reader, window, times, graph, alter=config.appearance())
        return HostEngine(
            self.reader,
            window,
            times,
            frames=config.frames,
            size=config.size,
            pin=self.device.type == "cuda",
            alter=config.appearance(),
        )

    def _read(
        self, requests: Sequence[ClipRequest], out: Sequence[np.ndarray | None], replace: bool
    ) -> list[Item | None]:
        items: list[Item | None] = []
        for i, j in pairwise([*_group_begins(requests), len(requests)]):
            items += self._items(requests[i:j], out[i:j], replace)
        return items

    def _items(
        self, planned: Sequence[ClipRequest], out: Sequence[np.ndarray | None], replace: bool
    ) -> list[Item] | list[None]:
        """Read clips of the same frames, or their first readable substitute; None = left out."""
        requests = planned
        for attempt in range(len(self.index) + 1):
            sample = requests[0].sample
            try:
                if reason := self._quarantine.reason(requests[0]):
                    raise DataError(reason)
                items = self._engine.prepare(requests, self.indices(requests[0]), out)
                for item, request in zip(items, planned, strict=True):
                    item.planned = request
                return items
            except StorageError:
                raise
            except DataError as error:
                self._record(requests[0], str(error))
            except Exception as error:
                info = self.reader.row(sample)
                error.add_note(f"while reading sample {info.key!r} of {info.shard}")
                raise
            others = [self.plan.substitutes(r, attempt) if replace else None for r in planned]
            requests = [request for request in others if request is not None]
            if not requests:
                break
        if replace:
            label = int(self.index.labels[planned[0].sample])
            raise DataError(f"no sample with label {label} can be read\n{self._listing()}")
        return [None] * len(planned)

    def indices(self, request: ClipRequest) -> np.ndarray:
        """Frames of a clip, int64 [T]; their times are read where clips are sampled by time."""
        if self.plan.fps is None:
            return self.plan.indices(request)
        return self.plan.indices(request, self.reader.seconds(request.sample))

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
                self._record(items[place].request, reason)
            again = [
                self._items([item.planned or item.request], [None], replace)[0]
                if place in failed
                else item
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
            sample=torch.from_numpy(samples),
        )
        on_host = self.device.type == "cuda" and video.device.type == "cpu"
        return batch.pin_memory() if on_host else batch

    def _record(self, request: ClipRequest, reason: str) -> None:
        """Remember a clip that cannot be read, and put its sample on the list, once."""
        if not self._quarantine.add(request, reason, self._hopeless):
            return
        info = self.reader.row(request.sample)
        self.skipped.append(Skip(info.key, info.shard, reason))
        _log.warning("skipped %s of %s: %s", info.key, info.shard, reason)
        self._check_rate()

    def _hopeless(self, sample: int) -> bool:
        """Whether no clip of a sample can be read, as its file cannot be opened."""
        if self._source is not None:  # it may have ended its process, and would end this one
            return False
        try:
            self.reader.check(sample)
        except StorageError:
            raise
        except DataError:
            return True
        return False

    def _check_rate(self) -> None:
        require_rate(str(self.index.root), self.skipped, self._total, self.config.max_error_rate)

    def _listing(self) -> str:
        return _listing(self.skipped)


def require_rate(root: str, skipped: Sequence[Skip], total: int, most: float) -> None:
    """Stop where more than a share `most` of a split's samples cannot be read.

    Raises:
        DataError: so it is; the message lists them.
    """
    if len(skipped) > most * total:
        raise DataError(
            f"{root}: {len(skipped)} of {total} samples cannot be read, more than max_error_rate = "
            f"{most:g}\n{_listing(skipped)}"
        )


def _listing(skipped: Sequence[Skip]) -> str:
    lines = [f"  {skip.key} ({skip.shard}): {skip.reason}" for skip in skipped[:10]]
    more = len(skipped) - len(lines)
    return "\n".join(lines + ([f"  ... and {more} more"] if more > 0 else []))


def skips(index: ShardIndex) -> list[Skip]:
    """The samples that the index itself leaves out."""
    return [Skip(bad.key, bad.shard, bad.error) for bad in index.bad]


def _group_begins(requests: Sequence[ClipRequest]) -> list[int]:
    """Where clips of other frames than those before begin."""
    return [
        i
        for i, request in enumerate(requests)
        if i == 0 or not request.shares_frames(requests[i - 1])
    ]
