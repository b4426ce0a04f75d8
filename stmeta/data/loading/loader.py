"""From a folder of shards to batches of clips, made ahead of the model that uses them."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.decode.choice import DecoderChoice, choose_decoder
from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.collate import Collator
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.loading.resume import resume_position
from stmeta.data.loading.sampler import ClipRequest
from stmeta.data.shards.index import BadSample, ShardIndex
from stmeta.data.storage.folder import reading_stats

_log = logging.getLogger("stmeta.data")


class ClipLoader:
    """Delivers the clips of a split, batch by batch, and can go on exactly where it stopped.

    Which clips come, and their pixels, depend on the config's seed, the epoch and the position
    alone: not on threads, cache or timing. A sample that cannot be read is replaced by another with
    the same label in training, left out in evaluation, and listed in `skipped`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | ShardIndex,
        config: LoaderConfig | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Open a split; threads start with the first batch.

        Args:
            root: folder of the split, its address (http://..., s3://...), or its open index.
            config: defaults to `LoaderConfig()`.
            rank: this process, 0 ... world_size - 1.
            world_size: number of processes that share an epoch.

        Raises:
            DataError: there are no (or too few good) samples.
            BackendUnavailableError: the decoder or device that was named is not there.
            ValueError: the rank is out of range, DALI does not serve what is asked of it, or the
                split has no samples with (or without) a label where both are mixed.
        """
        self.config = config = config or LoaderConfig()
        self.index = index = (
            root if isinstance(root, ShardIndex) else ShardIndex.open(root, config.storage)
        )
        if len(index) == 0:
            reasons = "; ".join(sorted({bad.error for bad in index.bad}))
            raise DataError(f"{index.root}: none of {len(index.bad)} samples is good: {reasons}")
        self.sampler = config.sampler(index, rank=rank, world_size=world_size)
        self._timers = Timers()
        self.choice = self._choose()
        self.collator = Collator(
            index, self.sampler, config, self.choice, self._timers, fits=self._fits()
        )
        self._epoch = self._position = 0
        self._ahead: deque[tuple[tuple[int, int], Future[ClipBatch]]] = deque()
        _log.info("%s", self._summary())

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ClipBatch]:
        """Yield batches from the current position to the end of the epoch.

        Raises:
            DataError: too many samples cannot be read; the message lists them.
        """
        epoch = self._epoch
        while self._epoch == epoch:
            began = time.perf_counter()
            batch = self._next()
            self._timers.add("wait", time.perf_counter() - began)
            # What was handed out counts as delivered, also at the end of an epoch.
            self._position += 1
            if self._position == len(self):
                self._epoch, self._position = epoch + 1, 0
            if len(batch):
                self._timers.add("clips", len(batch))
                yield batch
            self._timers.add("elapsed", time.perf_counter() - began)

    @property
    def skipped(self) -> list[BadSample]:
        """Samples that were left out so far, with reasons; those of the index first."""
        return list(self.collator.skipped)

    def load(self, requests: Sequence[ClipRequest]) -> ClipBatch:
        """Read these clips, in this order; see `ClipSampler.clip` for making requests.

        A sample that cannot be read is replaced by another with the same label.
        """
        return self.deliver(self.submit(requests).result())

    def submit(self, requests: Sequence[ClipRequest]) -> Future[ClipBatch]:
        """Start reading clips; the result is what `load` returns, still in host memory."""
        return self.collator.submit(list(requests), replace=True)

    def sweep(self, view: int = 0) -> Iterator[ClipBatch]:
        """Yield every sample once, in order: for tables of features, and leaving none out.

        Training loaders show each video as epoch `view` would, augmented; evaluation loaders show
        their view `view`. Does not move the loader's position; unreadable samples are left out.
        """
        ahead: deque[Future[ClipBatch]] = deque()
        step, first = self.config.batch_size, 0
        while ahead or first < len(self.index):
            while first < len(self.index) and len(ahead) <= self.config.prefetch:
                part = range(first, min(first + step, len(self.index)))
                requests = [self.sampler.clip(i, epoch=view, view=view) for i in part]
                ahead.append(self.collator.submit(requests, replace=False))
                first += step
            self.collator.require_same_process()
            batch = self.deliver(ahead.popleft().result())
            if len(batch):
                yield batch

    def deliver(self, batch: ClipBatch) -> ClipBatch:
        """Move a batch that `submit` promised to the device."""
        device = torch.device(self.choice.device)
        if device.type == "cpu":
            return batch
        if batch.video.is_cuda:  # made on another stream: its memory must not be reused too early
            batch.video.record_stream(torch.cuda.current_stream(batch.video.device))
        return batch.to(device, non_blocking=True)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next batch will come from; batches made ahead do not count."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was called, also with another number of processes.

        Raises:
            ValueError: the state is of other data or another seed, or lies inside a batch.
        """
        self._epoch, self._position = resume_position(state, self._identity(), len(self))

    def stats(self) -> dict[str, Any]:
        """Where time went since the loader was made.

        Returns:
            clips, clips_per_second, elapsed_seconds (first to last batch), wait_seconds and
            wait_share (of the caller), read_/decode_/augment_seconds (added over threads), bound
            (the longest of these), skipped, cache_hits, cache_misses, cache_mib, decoder.
            Of the shards: bytes_read, retries, read_retry_seconds (of failed tries and the waits
            after them, over threads; a part of read_seconds), disk_cache_hits, disk_cache_misses.
        """
        names = ("read", "decode", "augment")
        spent = {name: self._timers[name] for name in names}
        elapsed = self._timers["elapsed"]
        return {
            "decoder": self.choice.decoder,
            "clips": int(self._timers["clips"]),
            "clips_per_second": self._timers["clips"] / elapsed if elapsed else 0.0,
            "elapsed_seconds": elapsed,
            "wait_seconds": self._timers["wait"],
            "wait_share": self._timers["wait"] / elapsed if elapsed else 0.0,
            **{f"{name}_seconds": seconds for name, seconds in spent.items()},
            "bound": max(spent, key=spent.__getitem__),
            "skipped": len(self.skipped),
            "cache_hits": int(self._timers["hit"]),
            "cache_misses": int(self._timers["miss"]),
            "cache_mib": self.collator.reader.decoded.used / 2**20,
            **reading_stats(self._timers),
        }

    def wait_for_prefetch(self) -> None:
        """Wait for the batches that are being made ahead; none is handed out."""
        self.collator.require_same_process()
        wait([future for _, future in self._ahead])

    def close(self) -> None:
        """Stop the threads and free memory; may be called twice."""
        self._ahead.clear()
        self.collator.close()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> ClipBatch:
        """The batch at the current position; keeps `prefetch` more in the making."""
        self.collator.require_same_process()
        place: tuple[int, int] | None = (self._epoch, self._position)
        # What was made ahead for another place, because the caller moved on, is dropped.
        while self._ahead and self._ahead[0][0] != place:
            self._ahead.popleft()[1].cancel()
        while len(self._ahead) <= self.config.prefetch:
            place = self._after(*self._ahead[-1][0]) if self._ahead else place
            if place is None:
                break
            requests = self.sampler.batch(*place)
            self._ahead.append((place, self.collator.submit(requests, replace=self.config.train)))
        return self.deliver(self._ahead.popleft()[1].result())

    def _after(self, epoch: int, position: int) -> tuple[int, int] | None:
        if position + 1 < len(self):
            return epoch, position + 1
        return (epoch + 1, 0) if self.config.train else None

    def _identity(self) -> dict[str, int]:
        """What a position depends on."""
        step = self.config.batch_size * self.sampler.world_size
        samples, seed = len(self.index), self.config.seed
        same = {"samples": samples, "seed": seed, "step": step, "repeats": self.sampler.repeats}
        if (labelled_sampler := self.sampler.labelled_sampler) is not None:
            same["labelled"] = step * labelled_sampler.labelled // labelled_sampler.of
        return same

    def _choose(self) -> DecoderChoice:
        """Settle which decoder runs, and where.

        Raises:
            ValueError: DALI was requested, with settings that it does not serve.
        """
        config = self.config
        choice = choose_decoder(config.decoder, config.device, fits=self._fits())
        reason = config.host_only(gpu=torch.device(choice.device).type == "cuda")
        if choice.decoder == "pyav" or not reason:
            return choice
        if config.decoder == "dali":
            raise ValueError(
                f"ClipLoader: decoder='dali' does not serve {reason}; use decoder='pyav' or 'auto'"
            )
        return DecoderChoice("pyav", choice.device, reason)

    def _fits(self) -> bool:
        """Whether all videos, decoded, are likely to fit into the cache."""
        some = range(0, len(self.index), -(-len(self.index) // 64))
        pixels = [self.index.row(i).width * self.index.row(i).height for i in some]
        total = float(self.index.frames.sum(dtype="int64")) * sum(pixels) / len(pixels) * 3
        return total < self.config.cache_mib * 2**20

    def _summary(self) -> str:
        config, choice = self.config, self.choice
        codecs = ", ".join(sorted(self.index.codecs))
        names = {"pyav": "PyAV decodes, torch resizes", "dali": "DALI decodes and resizes"}
        return (
            f"{self.index.root}: {len(self.index)} videos ({codecs}), {len(self.skipped)} bad; "
            f"clips of {config.frames} × {config.size} × {config.size} on {choice.device}: "
            f"{names[choice.decoder]} ({choice.reason}), {config.threads} threads, "
            f"cache {config.cache_mib:g} MiB ({'holds all' if self._fits() else 'holds a part'})"
        )
