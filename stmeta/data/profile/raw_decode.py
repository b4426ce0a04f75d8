"""FFmpeg alone on the frames of clips: what a loader that decodes cannot pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from av.error import FFmpegError

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta._util.workers import process_pool
from stmeta.data.decode import pyav
from stmeta.data.decode.sample import VideoPlace
from stmeta.data.storage.folder import StorageError, folder_of

if TYPE_CHECKING:
    from stmeta.data.storage.folder import Root

_BYTES = 64 << 20  # of clips that a process keeps in memory


class Work(NamedTuple):
    """What one process did.

    Attributes:
        clips: decoded.
        seconds: that it took.
        cpu_seconds: of the process.
    """

    clips: int
    seconds: float
    cpu_seconds: float


class _Clip(NamedTuple):
    video: bytes
    begin: int
    indices: np.ndarray
    packets: pyav.PacketList | None


_clips: list[_Clip] = []  # of this process


class RawDecode:
    """Processes that decode clips from the key frame before them, and do nothing else.

    The bytes are in memory and each file's packets are listed beforehand. Frames that nothing
    refers to are left out as the loader leaves them out; nothing is converted.
    """

    def __init__(
        self, root: Root, clips: Sequence[tuple[VideoPlace, np.ndarray]], workers: int
    ) -> None:
        """Read the clips: where their videos lie, and their frames, int64 [T].

        Raises:
            DataError: none of them can be decoded.
        """
        self._pools: list[ProcessPoolExecutor] = []
        try:
            # Each process is a pool of its own, so that each gets its share and keeps it.
            self._pools += [process_pool(1) for _ in range(min(workers, len(clips)))]
            count = len(self._pools)
            parts = [clips[number::count] for number in range(count)]
            made = [
                pool.submit(_prepare, root, part)
                for pool, part in zip(self._pools, parts, strict=True)
            ]
            if not all([future.result() for future in made]):
                raise DataError(f"{root}: none of the first clips can be decoded")
        except BaseException:
            self.close()
            raise

    def run(self, seconds: float) -> list[Work]:
        """Decode for so long, in all processes at once."""
        futures = [pool.submit(_run, seconds) for pool in self._pools]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def _prepare(root: Root, clips: Sequence[tuple[VideoPlace, np.ndarray]]) -> int:
    """Read clips until there are enough; returns how many are good."""
    folder, kept = folder_of(root), 0
    for place, indices in clips:
        frames = np.unique(indices)
        try:
            video = folder.read(place.shard, place.offset, place.size, Timers())
            packets = pyav.read_packets(video)
            begin, end = packets.byte_range(frames) if packets else (0, len(video))
            clip = _Clip(video[begin:end], begin, frames, packets)
            if _decode(clip) < len(frames):
                continue
        except StorageError:
            raise
        except (DataError, FFmpegError, IndexError):  # damaged, or shorter than the index says
            continue
        _clips.append(clip)
        kept += len(clip.video)
        if kept > _BYTES:
            break
    return len(_clips)


def _run(seconds: float) -> Work:
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds or count == 0:
        _decode(_clips[count % len(_clips)])
        count += 1
    return Work(count, time.perf_counter() - began, time.process_time() - cpu)


def _decode(clip: _Clip) -> int:
    """Returns how many frames of the clip came."""
    return sum(1 for _ in pyav.raw_frames(clip.video, clip.indices, clip.packets, clip.begin))
