"""Frames of samples, from memory or from their shards; and clips cut from them on the host."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from stmeta._errors import DataError
from stmeta._util.fill_once_cache import FillOnceCache
from stmeta._util.timers import Timers
from stmeta.data.augment.crop import shown_window
from stmeta.data.decode.pyav import Frames, YuvFrames
from stmeta.data.decode.sample import EncodedFrames, FrameSource, SampleDecoder, VideoPlace
from stmeta.data.loading.engine import (
    CacheMiss,
    Outputs,
    PendingClip,
    PixelTransform,
    Requests,
    WindowFn,
)
from stmeta.data.shards.index import ShardIndex
from stmeta.data.storage.folder import StorageError
from stmeta.data.video import limits

_TIMES_MIB = 64  # for times of frames of videos with a variable rate: 8 bytes a frame
_WHOLE = 32  # a video is decoded whole, for the cache, up to so many clips long


class ClipReader:
    """Reads and decodes clips of an index with PyAV; may be called from many threads."""

    def __init__(
        self,
        index: ShardIndex,
        *,
        cache_mib: float,
        whole: bool,
        timers: Timers,
        source: FrameSource | None = None,
    ) -> None:
        """Serve the samples of an index.

        Args:
            index: where the samples lie.
            cache_mib: memory for decoded frames.
            whole: keep whole videos, for clips that start anywhere; False keeps clips.
            timers: receives seconds of "read" and "decode", and counts of "hit" and "miss".
            source: decodes; None = the calling thread.
        """
        self.index, self.whole, self.timers = index, whole, timers
        self.decoded = FillOnceCache(int(cache_mib * 2**20))
        self.files = SampleDecoder(index.root)
        self.source = source or self.files
        self._uncacheable: set[int | tuple[int, bytes]] = set()
        self._seconds = FillOnceCache(_TIMES_MIB * 2**20)
        self.row = functools.lru_cache(maxsize=1 << 16)(index.row)

    def clip(self, sample: int, indices: np.ndarray) -> Frames:
        """Return frames of a sample, from memory or from disk.

        What is returned does not depend on what is in memory: a video that cannot be decoded whole
        still gives the clips that can.

        Args:
            sample: position in the index.
            indices: int64 [T], ascending; may repeat.

        Raises:
            DataError: the clip cannot be decoded; the message is the reason alone.
        """
        found = self._cached(sample, indices)
        if isinstance(found, CacheMiss):
            return _select(self._decode(sample, found.frames), _places(found))
        return found

    def yuv_clip(self, sample: int, indices: np.ndarray) -> Frames | YuvFrames:
        """The same, not converted to RGB where that is left to `crop_resize`; see `clip`.

        The cache keeps RGB: what is read often is converted once.
        """
        found = self._cached(sample, indices)
        if isinstance(found, Frames):
            return found
        frames = self.source.decode_yuv(sample, self._place(sample), found.frames, self.timers)
        places = _places(found)
        if isinstance(frames, Frames):
            return _select(frames, places)
        return YuvFrames(frames.video[places], frames.pts_seconds[places])

    def yuv_parts(
        self, sample: int, indices: np.ndarray
    ) -> Iterator[tuple[slice, Frames | YuvFrames]]:
        """A clip in parts that are small in memory, one for most videos; see `yuv_clip`.

        Yields:
            Where the part is in the clip, and the part.
        """
        info = self.row(sample)
        step = limits.frames_at_once(info.width, info.height)
        limits.check_clip(len(_distinct(indices)), info.width, info.height)
        for begin in range(0, len(indices), step):
            part = slice(begin, begin + step)
            yield part, self.yuv_clip(sample, indices[part])

    def _cached(self, sample: int, indices: np.ndarray) -> Frames | CacheMiss:
        """A clip from memory, or from frames that are kept from now on; else what to decode."""
        found = self.lookup(sample, indices)
        if isinstance(found, Frames):
            return found
        if found.reserved:
            try:
                return self.store(found, self._decode(sample, found.frames))
            except BaseException as error:
                found = self.cancel(found)
                if isinstance(error, StorageError) or not isinstance(error, DataError):
                    raise
        return found

    def decode_uncached(self, sample: int, indices: np.ndarray) -> Frames:
        """Decode a clip without a look at the cache; see `clip`."""
        frames = _distinct(indices)
        return _select(self._decode(sample, frames), np.searchsorted(frames, indices))

    def seconds(self, sample: int) -> np.ndarray:
        """Times of a sample's frames after its first one, float64 [frames], ascending.

        The index tells them where the rate is constant, the file's packets where it varies. Frames
        of a file that bears no times follow each other at the index's mean rate.

        Raises:
            DataError: the file is damaged; the message is the reason alone.
        """
        info = self.row(sample)
        if not info.variable_rate:
            return np.arange(info.frames) / info.fps
        seconds = self._seconds.get(sample)
        if seconds is None:
            seconds = self.files.seconds(sample, self._place(sample), self.timers)
            if self._seconds.reserve(seconds.nbytes):
                self._seconds.fill(sample, seconds, seconds.nbytes)
        return seconds

    def lookup(self, sample: int, indices: np.ndarray) -> Frames | CacheMiss:
        """Return a clip from memory, or say what must be decoded; see `clip`."""
        key = sample if self.whole else (sample, indices.tobytes())
        frames = self.decoded.get(key)
        self.timers.add("miss" if frames is None else "hit", 1)
        if frames is not None:
            places = indices if self.whole else np.searchsorted(_distinct(indices), indices)
            return _select(frames, places)
        if key not in self._uncacheable:
            info = self.row(sample)
            every = np.arange(info.frames) if self.whole else _distinct(indices)
            nbytes = len(every) * info.width * info.height * 3
            small = nbytes <= self.decoded.limit // 8 and len(every) <= _WHOLE * len(indices)
            if small and self.decoded.reserve(nbytes):
                return CacheMiss(sample, key, every, indices, nbytes)
        return CacheMiss(sample, key, _distinct(indices), indices, 0)

    def store(self, missing: CacheMiss, frames: Frames) -> Frames:
        """Keep frames if room was reserved for them, and return the clip."""
        if missing.reserved:
            self.decoded.fill(missing.key, frames, missing.reserved)
        return _select(frames, _places(missing))

    def release(self, missing: CacheMiss) -> None:
        """Return the room that was reserved for frames."""
        if missing.reserved:
            self.decoded.fill(missing.key, None, missing.reserved)

    def cancel(self, missing: CacheMiss) -> CacheMiss:
        """Return the room that was reserved; from now on, this video is decoded clip by clip."""
        if missing.reserved:
            self._uncacheable.add(missing.key)
            self.release(missing)
        return missing._replace(frames=_distinct(missing.indices), reserved=0)

    def encoded(self, missing: CacheMiss) -> EncodedFrames | None:
        """Return a file that has the missing frames, or None; see `SampleDecoder.encoded`.

        Raises:
            DataError: the file is damaged; the message is the reason alone.
        """
        info, place = self.row(missing.sample), self._place(missing.sample)
        limits.check_clip(len(missing.frames), info.width, info.height)
        return self.files.encoded(missing.sample, place, missing.frames, self.timers)

    def check(self, sample: int) -> None:
        """Read a sample's file and count its packets.

        Raises:
            DataError: the file is damaged; the message is the reason alone.
        """
        self.files.seconds(sample, self._place(sample), self.timers)

    def _decode(self, sample: int, indices: np.ndarray) -> Frames:
        info = self.row(sample)
        limits.check_clip(len(indices), info.width, info.height)
        return self.source.decode(sample, self._place(sample), indices, self.timers)

    def _place(self, sample: int) -> VideoPlace:
        info = self.row(sample)
        return VideoPlace(
            info.shard,
            info.offset,
            info.size,
            info.frames,
            info.rotation,
            float(info.fps),
            info.variable_rate,
            info.mirror,
        )


class HostEngine:
    """PyAV decodes, torch or the extension resizes: a clip is done when its thread is."""

    def __init__(
        self,
        reader: ClipReader,
        window_fn: WindowFn,
        timers: Timers,
        *,
        frames: int,
        size: int,
        pin: bool,
        transform: PixelTransform | None = None,
    ) -> None:
        """Make an engine; `pin` allocates batches in page-locked memory."""
        self.reader, self.window_fn, self.transform, self.timers = (
            reader,
            window_fn,
            transform,
            timers,
        )
        self.shape, self.pin = (frames, size, size, 3), pin

    def allocate(self, clips: int) -> Tensor:
        """See `Engine`."""
        return torch.empty((clips, *self.shape), dtype=torch.uint8, pin_memory=self.pin)

    def prepare(self, requests: Requests, indices: np.ndarray, out: Outputs) -> list[PendingClip]:
        """See `Engine`."""
        pts = np.empty(len(indices))
        display = self.reader.row(requests[0].sample).display
        for part, frames in self.reader.yuv_parts(requests[0].sample, indices):
            pts[part] = frames.pts_seconds
            _, height, width, _ = frames.video.shape
            with self.timers.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    assert pixels is not None
                    window = shown_window(
                        self.window_fn, request.augment_seed, height, width, display
                    )
                    frames.crop_resize(window, pixels[part])
        if self.transform is not None:
            with self.timers.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    self.transform(pixels, request.augment_seed)
        return [PendingClip(request, indices, pts_seconds=pts) for request in requests]

    def finish(
        self, items: Sequence[PendingClip], output: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
        """See `Engine`."""
        assert output is not None
        return output, {}

    def close(self) -> None:
        """See `Engine`."""


def _distinct(indices: np.ndarray) -> np.ndarray:
    """Ascending numbers without their repeats; `np.unique` costs ten times as much on so few."""
    new = np.ones(len(indices), bool)
    np.not_equal(indices[1:], indices[:-1], out=new[1:])
    return indices[new]


def _places(missing: CacheMiss) -> np.ndarray:
    """Where the frames of a clip are among those that were decoded for it."""
    return np.searchsorted(missing.frames, missing.indices)


def _select(frames: Frames, places: np.ndarray) -> Frames:
    """Pick frames; without a copy where they are evenly spaced."""
    if len(places) > 1:
        step = int(places[1] - places[0])
        if step > 0 and bool((np.diff(places) == step).all()):
            part = slice(int(places[0]), int(places[-1]) + 1, step)
            return Frames(frames.video[part], frames.pts_seconds[part])
    return Frames(frames.video[places], frames.pts_seconds[places])
