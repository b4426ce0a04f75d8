"""Makes batches on background threads: reads, decodes, replaces what is damaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.decode.choice import DecoderChoice
from stmeta.data.decode.dali import DaliGraph
from stmeta.data.decode.process import ProcessDecoder
from stmeta.data.loading.bad_samples import BadSamples
from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.loading.dali_engine import DaliEngine
from stmeta.data.loading.engine import Engine, PendingClip
from stmeta.data.loading.reader import ClipReader, HostEngine
from stmeta.data.loading.sampler import ClipRequest, ClipSampler
from stmeta.data.shards.index import BadSample, ShardIndex
from stmeta.data.storage.folder import StorageError


class Collator:
    """Turns lists of requests into batches.

    `threads` readers work on clips, a few at a time; one more thread puts batches together, in the
    order in which they were requested.
    """

    def __init__(
        self,
        index: ShardIndex,
        sampler: ClipSampler,
        config: LoaderConfig,
        choice: DecoderChoice,
        timers: Timers,
        *,
        fits: bool,
    ) -> None:
        """Make a collator; threads and processes start with the first request.

        `fits` says whether the cache holds all videos.

        Raises:
            DataError: too many samples of the index are bad.
        """
        self.index, self.sampler, self.config = index, sampler, config
        self.device = torch.device(choice.device)
        self._bad_samples = BadSamples(index, config.max_error_rate)
        count = config.processes
        if count == "auto":
            # What two threads lose by Python's lock is less than what goes between processes. Clips
            # that start where shards allow have few packets, and threads seldom meet.
            alone = config.threads <= 2 or choice.decoder == "dali" or sampler.align > 1
            count = 0 if fits or alone else config.threads
        self._source = ProcessDecoder(index.root, count) if count else None
        self.reader = ClipReader(
            index,
            cache_mib=config.cache_mib,
            whole=config.train,
            timers=timers,
            source=self._source,
        )
        self._engine = self._make_engine(choice, timers)
        self._readers: ThreadPoolExecutor | None = None
        self._assembler: ThreadPoolExecutor | None = None
        self._closed = False
        self._pid = 0  # the process whose threads these are

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
        self.require_same_process()
        if self._readers is None or self._assembler is None:
            self._pid = os.getpid()
            self._readers = ThreadPoolExecutor(self.config.threads, "stmeta-read")
            self._assembler = ThreadPoolExecutor(1, "stmeta-join")
        output = self._engine.allocate(len(requests))
        out = [None] * len(requests) if output is None else list(output.numpy())
        begins = _group_begins(requests)
        # A task for each clip would cost as much as a small clip; one a thread would leave gaps.
        step = max(1, len(begins) // (4 * self.config.threads))
        bounds = [*begins[::step], len(requests)]
        parts = [
            self._readers.submit(self._read, requests[i:j], out[i:j], replace)
            for i, j in pairwise(bounds)
        ]
        return self._assembler.submit(self._collate, parts, output, replace)

    def require_same_process(self) -> None:
        """Threads are not there after a fork, and what waits for them waits for ever.

        Raises:
            ValueError: the loader was used before this process was forked.
        """
        if self._pid not in (0, os.getpid()):
            raise ValueError(
                "ClipLoader: it was used before this process was forked, and its threads stayed "
                "behind; make a loader in each process, or start processes with spawn"
            )

    @property
    def skipped(self) -> list[BadSample]:
        """Samples that were left out so far; see `BadSamples`."""
        return self._bad_samples.skipped

    @property
    def processes(self) -> int:
        """Processes that decode; 0 = this one does."""
        return self._source.count if self._source else 0

    def close(self) -> None:
        """Stop the threads; batches that were not made yet are dropped."""
        self._closed = True
        if self._pid not in (0, os.getpid()):
            return  # all that it holds is the other process's
        pools = [pool for pool in (self._assembler, self._readers) if pool is not None]
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)
        self._engine.close()
        if self._source is not None:
            self._source.close()

    def _make_engine(self, choice: DecoderChoice, timers: Timers) -> Engine:
        config, window = self.config, self.config.window
        if choice.decoder == "dali":
            graph = DaliGraph(
                batch_size=config.batch_size,
                frames=config.frames,
                size=config.size,
                threads=config.threads,
                device=choice.device,
            )
            return DaliEngine(self.reader, window, timers, graph, transform=config.photometric())
        return HostEngine(
            self.reader,
            window,
            timers,
            frames=config.frames,
            size=config.size,
            pin=self.device.type == "cuda",
            transform=config.photometric(),
        )

    def _read(
        self, requests: Sequence[ClipRequest], out: Sequence[np.ndarray | None], replace: bool
    ) -> list[PendingClip | None]:
        items: list[PendingClip | None] = []
        for i, j in pairwise([*_group_begins(requests), len(requests)]):
            items += self._items(requests[i:j], out[i:j], replace)
        return items

    def _items(
        self, planned: Sequence[ClipRequest], out: Sequence[np.ndarray | None], replace: bool
    ) -> list[PendingClip] | list[None]:
        """Read clips of the same frames, or their first readable substitute; None = left out."""
        requests = planned
        for attempt in range(len(self.index) + 1):
            sample = requests[0].sample
            try:
                if reason := self._bad_samples.reason(requests[0]):
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
            others = [self.sampler.substitute(r, attempt) if replace else None for r in planned]
            requests = [request for request in others if request is not None]
            if not requests:
                break
        if replace:
            label = int(self.index.labels[planned[0].sample])
            raise DataError(
                f"no sample with label {label} can be read\n{self._bad_samples.listing()}"
            )
        return [None] * len(planned)

    def indices(self, request: ClipRequest) -> np.ndarray:
        """Frames of a clip, int64 [T]; their times are read where clips are sampled by time."""
        if self.sampler.fps is None:
            return self.sampler.indices(request)
        return self.sampler.indices(request, self.reader.seconds(request.sample))

    def _collate(
        self,
        parts: list[Future[list[PendingClip | None]]],
        output: torch.Tensor | None,
        replace: bool,
    ) -> ClipBatch:
        found = [item for part in parts for item in part.result()]
        places = [place for place, item in enumerate(found) if item is not None]
        if output is not None and len(places) < len(found):
            output = output[places]
        items = [item for item in found if item is not None]
        while True:
            video, failed = self._engine.finish(items, output)
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

    def _batch(self, items: list[PendingClip], video: torch.Tensor) -> ClipBatch:
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
        """Remember a clip that cannot be read."""
        info = self.reader.row(request.sample)
        bad = BadSample(info.shard, info.key, reason)
        self._bad_samples.record(request, bad, self._is_unreadable)

    def _is_unreadable(self, sample: int) -> bool:
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


def _group_begins(requests: Sequence[ClipRequest]) -> list[int]:
    """Where clips of other frames than those before begin."""
    return [
        i
        for i, request in enumerate(requests)
        if i == 0 or not request.shares_frames(requests[i - 1])
    ]
