"""Frames of samples: reads shards, decodes, and keeps what fits in memory.

Both caches admit until they are full and never evict: a set that does not fit keeps a stable part
in memory, where eviction would drop every video just before its next use.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from stmeta._errors import DataError
from stmeta.data.decode import pyav
from stmeta.data.shards import SampleInfo, ShardIndex

_PACKETS_MIB = 64  # for lists of packets: about 25 bytes a frame
_WHOLE = 32  # a video is decoded whole, for the cache, up to so many clips long


class Clip(NamedTuple):
    """A clip at the size of its source.

    Attributes:
        video: uint8 [T, H, W, 3]; may be a view of cached memory: read only.
        pts_seconds: float64 [T].
    """

    video: np.ndarray
    pts_seconds: np.ndarray


class Times:
    """Seconds and counts, added up over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0.0) + amount

    def __getitem__(self, name: str) -> float:
        return self._sums.get(name, 0.0)


class StableCache:
    """Keeps values until a limit in bytes is reached, then admits no more."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()
        self._values: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> Any:
        """The value, or None."""
        return self._values.get(key)

    def reserve(self, nbytes: int) -> bool:
        """Take room for a value that is about to be made; False = it does not fit."""
        with self._lock:
            if self.used + nbytes > self.limit:
                return False
            self.used += nbytes
            return True

    def fill(self, key: Any, value: Any, nbytes: int) -> None:
        """Store a value in the room that was reserved; None gives the room back."""
        with self._lock:
            if value is None or key in self._values:
                self.used -= nbytes
            else:
                self._values[key] = value


class Missing(NamedTuple):
    """Frames that are not in memory: what `ClipReader.store` needs once they are decoded.

    Attributes:
        sample: position in the index.
        key: name in the cache.
        frames: int64 [F], frames to decode, ascending: those of the clip, or the whole video.
        indices: int64 [T], frames of the clip.
        reserved: bytes that were set aside in the cache; 0 = will not be kept.
    """

    sample: int
    key: int | tuple[int, int]
    frames: np.ndarray
    indices: np.ndarray
    reserved: int


class ClipReader:
    """Reads and decodes clips of an index with PyAV; may be called from many threads."""

    def __init__(self, index: ShardIndex, *, cache_mib: float, whole: bool, times: Times) -> None:
        """Serve the samples of an index.

        Args:
            index: where the samples lie.
            cache_mib: memory for decoded frames.
            whole: keep whole videos, for clips that start anywhere; False keeps clips.
            times: receives seconds of "read" and "decode", and counts of "hit" and "miss".
        """
        self.index, self.whole, self.times = index, whole, times
        self.decoded = StableCache(int(cache_mib * 2**20))
        self._packets = StableCache(_PACKETS_MIB * 2**20)
        self._unfit: set[int | tuple[int, int]] = set()
        self.row = functools.lru_cache(maxsize=1 << 16)(index.row)

    def clip(self, sample: int, indices: np.ndarray) -> Clip:
        """Return frames of a sample, from memory or from disk.

        What is returned does not depend on what is in memory: a video that cannot be decoded whole
        still gives the clips that can.

        Args:
            sample: position in the index.
            indices: int64 [T], ascending; may repeat.

        Raises:
            DataError: the clip cannot be decoded; the message is the reason alone.
        """
        found = self.look_up(sample, indices)
        if isinstance(found, Clip):
            return found
        if found.reserved:
            try:
                return self.store(found, self._decode(sample, found.frames))
            except DataError:
                found = self.give_up(found)
            except BaseException:
                self.give_up(found)
                raise
        return self.fresh(sample, indices)

    def fresh(self, sample: int, indices: np.ndarray) -> Clip:
        """Decode a clip without a look at the cache; see `clip`."""
        return _select(self._decode(sample, np.unique(indices)), _places(indices))

    def look_up(self, sample: int, indices: np.ndarray) -> Clip | Missing:
        """Return a clip from memory, or say what must be decoded; see `clip`."""
        key = sample if self.whole else (sample, int(indices[0]))
        frames = self.decoded.get(key)
        self.times.add("miss" if frames is None else "hit", 1)
        if frames is not None:
            return _select(frames, indices if self.whole else _places(indices))
        if key not in self._unfit:
            info = self.row(sample)
            every = np.arange(info.frames) if self.whole else np.unique(indices)
            nbytes = len(every) * info.width * info.height * 3
            small = nbytes <= self.decoded.limit // 8 and len(every) <= _WHOLE * len(indices)
            if small and self.decoded.reserve(nbytes):
                return Missing(sample, key, every, indices, nbytes)
        return Missing(sample, key, np.unique(indices), indices, 0)

    def store(self, missing: Missing, frames: pyav.Frames) -> Clip:
        """Keep frames if room was reserved for them, and return the clip."""
        if missing.reserved:
            self.decoded.fill(missing.key, frames, missing.reserved)
        return _select(frames, np.searchsorted(missing.frames, missing.indices))

    def give_up(self, missing: Missing) -> Missing:
        """Return the room that was reserved; from now on, this video is decoded clip by clip."""
        if missing.reserved:
            self._unfit.add(missing.key)
            self.decoded.fill(missing.key, None, missing.reserved)
        return missing._replace(frames=np.unique(missing.indices), reserved=0)

    def encoded(self, missing: Missing) -> tuple[bytes, np.ndarray]:
        """Return a whole video file, its packets counted, and the times of its missing frames.

        Raises:
            DataError: the file is damaged; the message is the reason alone.
        """
        info = self.row(missing.sample)
        with self.times.measure("read"):
            video = self._read(info, 0, info.size)
        with self.times.measure("decode"):
            packets = self._packets.get(missing.sample)
            packets = packets or self._list(missing.sample, info, video)
        if packets is None:
            return video, missing.frames / info.fps
        return video, packets.seconds(missing.frames)

    def _decode(self, sample: int, indices: np.ndarray) -> pyav.Frames:
        info = self.row(sample)
        packets = self._packets.get(sample)
        begin, end = packets.byte_range(indices) if packets else (0, info.size)
        with self.times.measure("read"):
            video = self._read(info, begin, end)
        with self.times.measure("decode"):
            packets = packets or self._list(sample, info, video)
            return pyav.decode(
                video,
                indices,
                packets=packets,
                first_byte=begin,
                rotation=info.rotation,
                fps=info.fps,
            )

    def _list(self, sample: int, info: SampleInfo, video: bytes) -> pyav.PacketList | None:
        packets = pyav.read_packets(video)
        if packets is None:
            return None
        if packets.frames != info.frames:
            raise DataError(f"the index says {info.frames} frames, the file has {packets.frames}")
        if self._packets.get(sample) is None and self._packets.reserve(packets.nbytes):
            self._packets.fill(sample, packets, packets.nbytes)
        return packets

    def _read(self, info: SampleInfo, begin: int, end: int) -> bytes:
        try:
            file = os.open(self.index.root / info.shard, os.O_RDONLY)
            try:
                video = os.pread(file, end - begin, info.offset + begin)
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if len(video) < end - begin:
            raise DataError("the shard ends inside this sample")
        return video


def _places(indices: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.unique(indices), indices)


def _select(frames: pyav.Frames, places: np.ndarray) -> Clip:
    """Pick frames; without a copy where they are evenly spaced."""
    if len(places) > 1:
        step = int(places[1] - places[0])
        if step > 0 and bool((np.diff(places) == step).all()):
            part = slice(int(places[0]), int(places[-1]) + 1, step)
            return Clip(frames.video[part], frames.pts_seconds[part])
    return Clip(frames.video[places], frames.pts_seconds[places])
