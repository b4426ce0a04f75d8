"""The engine around DALI: what it decodes, what PyAV decodes for it, and one graph that resizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.augment.crop import Window, shown_window
from stmeta.data.decode import dali
from stmeta.data.decode.pyav import Frames
from stmeta.data.decode.sample import EncodedFrames
from stmeta.data.loading.engine import (
    CacheMiss,
    Outputs,
    PendingClip,
    PixelTransform,
    Requests,
    WindowFn,
)
from stmeta.data.loading.reader import ClipReader
from stmeta.data.loading.sampler import ClipRequest
from stmeta.data.storage.folder import StorageError


class DaliEngine:
    """DALI decodes what it can and resizes everything; PyAV decodes the rest.

    On a CPU, decoded frames go through the cache like those of PyAV. On a GPU, videos that NVDEC
    takes are decoded and resized there in one pipeline and are not kept.
    """

    def __init__(
        self,
        reader: ClipReader,
        window_fn: WindowFn,
        timers: Timers,
        graph: dali.DaliGraph,
        *,
        transform: PixelTransform | None = None,
    ) -> None:
        """Make an engine around the pipelines of `graph`; `transform` runs on their device."""
        self.reader, self.window_fn, self.timers, self.graph = reader, window_fn, timers, graph
        self.transform = transform
        self.refused: set[int] = set()  # samples that only PyAV can read

    def allocate(self, clips: int) -> None:
        """See `Engine`."""

    def prepare(self, requests: Requests, indices: np.ndarray, out: Outputs) -> list[PendingClip]:
        """See `Engine`."""
        if self.graph.gpu:  # there, what is decoded is not kept
            return [self._prepare(request, indices) for request in requests]
        first = self._prepare(requests[0], indices)
        return [first, *(PendingClip(request, indices, leader=first) for request in requests[1:])]

    def _prepare(self, request: ClipRequest, indices: np.ndarray) -> PendingClip:
        sample, item = request.sample, PendingClip(request, indices)
        info, gpu = self.reader.row(sample), self.graph.gpu
        wanted = dali.decodes(info.codec, info.width, info.height, info.display, gpu=gpu)
        if not wanted or sample in self.refused:
            return _with_clip(item, self.reader.clip(sample, indices))
        if gpu:
            item.missing = CacheMiss(sample, sample, indices, indices, 0)
        else:
            found = self.reader.lookup(sample, indices)
            if isinstance(found, Frames):
                return _with_clip(item, found)
            item.missing = found
        try:
            # Files are counted here first, because DALI stops at damaged ones or pads them.
            item.encoded = self.reader.encoded(item.missing)
            if item.encoded is None:  # DALI would count other frames
                self.refused.add(sample)
                self.reader.release(item.missing)
                item.missing = None
                return _with_clip(item, self.reader.clip(sample, indices))
        except BaseException:
            if item.missing is not None:
                self.reader.cancel(item.missing)
            raise
        return item

    def finish(
        self, items: Sequence[PendingClip], output: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
        """See `Engine`."""
        with self.graph.beside():
            return self._finish(items)

    def _finish(self, items: Sequence[PendingClip]) -> tuple[Tensor, dict[int, str]]:
        failed: dict[int, str] = {}
        parts: list[tuple[list[int], Tensor]] = []
        encoded = [place for place, item in enumerate(items) if item.missing is not None]
        for places in self._chunks(encoded):
            with self.timers.measure("decode"):
                if self.graph.gpu:
                    parts += self._nvdec(items, places, failed)
                else:
                    self._decode(items, places, failed)
        self._share_frames(items, failed)
        ready = [place for place, item in enumerate(items) if item.clip is not None]
        for places in self._chunks(ready):
            with self.timers.measure("augment"):
                clips = [items[place].clip.video for place in places]  # type: ignore[union-attr]
                windows = [
                    self._window(items[place].request, *clip.shape[1:3])
                    for place, clip in zip(places, clips, strict=True)
                ]
                parts.append((places, self.graph.augment(clips, windows)))
        video = self._join(parts, len(items))
        if self.transform is not None:
            with self.timers.measure("augment"):
                for pixels, item in zip(video, items, strict=True):
                    self.transform(
                        pixels if self.graph.gpu else pixels.numpy(), item.request.augment_seed
                    )
        return video, failed

    def close(self) -> None:
        """See `Engine`."""
        self.graph.close()

    def _window(self, request: ClipRequest, height: int, width: int) -> Window:
        display = self.reader.row(request.sample).display
        return shown_window(self.window_fn, request.augment_seed, height, width, display)

    def _share_frames(self, items: Sequence[PendingClip], failed: dict[int, str]) -> None:
        """Hand the frames of leaders, or the reason why there are none, to the others."""
        reasons = {id(items[place]): reason for place, reason in failed.items()}
        for place, item in enumerate(items):
            if item.clip is not None or item.leader is None:
                continue
            if item.leader.clip is not None:
                _with_clip(item, item.leader.clip)
            else:
                failed[place] = reasons[id(item.leader)]

    def _chunks(self, places: list[int]) -> list[list[int]]:
        size = self.graph.batch_size
        return [places[i : i + size] for i in range(0, len(places), size)]

    def _decode(
        self, items: Sequence[PendingClip], places: list[int], failed: dict[int, str]
    ) -> None:
        """Decode on the CPU; fills in `clip`."""
        todo = [(items[place], *_files(items[place])) for place in places]
        try:
            decoded = self.graph.decode(
                [encoded.file for _, _, encoded in todo],
                [encoded.places for _, _, encoded in todo],
            )
        except dali.PipelineError:
            if len(places) == 1:
                self.refused.add(todo[0][0].request.sample)
                self._fall_back(items, places[0], failed)
                return
            for place in places:  # one sample fails them all: find it
                self._decode(items, [place], failed)
            return
        for place, (item, missing, encoded), frames in zip(places, todo, decoded, strict=True):
            if frames.reshape(len(frames), -1).any(1).all():  # no frame is black
                found = Frames(frames, encoded.pts_seconds)
                _with_clip(item, self.reader.store(missing, found))
            elif missing.reserved:  # look at this clip alone: the cache must not change results
                item.missing = self.reader.cancel(missing)
                item.encoded = encoded.some(np.searchsorted(missing.frames, item.missing.frames))
                self._decode(items, [place], failed)
            else:
                self._fall_back(items, place, failed)

    def _nvdec(
        self, items: Sequence[PendingClip], places: list[int], failed: dict[int, str]
    ) -> list[tuple[list[int], Tensor]]:
        """Decode and augment on the GPU."""
        files = [_files(items[place])[1] for place in places]
        infos = [self.reader.row(items[place].request.sample) for place in places]
        windows = [
            self._window(items[place].request, info.height, info.width)
            for place, info in zip(places, infos, strict=True)
        ]
        try:
            clips = self.graph.decode_augment(
                [encoded.file for encoded in files], [encoded.places for encoded in files], windows
            )
        except dali.PipelineError:
            if len(places) > 1:
                return [part for place in places for part in self._nvdec(items, [place], failed)]
            self.refused.add(items[places[0]].request.sample)
            self._fall_back(items, places[0], failed)
            return []
        dark = set(dali.black(clips))
        for number in dark:
            self._fall_back(items, places[number], failed)
        for number in set(range(len(places))) - dark:
            items[places[number]].pts_seconds = files[number].pts_seconds
        kept = [number for number in range(len(places)) if number not in dark]
        return [([places[number] for number in kept], clips[kept] if dark else clips)]

    def _fall_back(self, items: Sequence[PendingClip], place: int, failed: dict[int, str]) -> None:
        """Read with PyAV what DALI failed on or returned as black."""
        item = items[place]
        if item.missing is not None:
            self.reader.cancel(item.missing)
        try:
            _with_clip(item, self.reader.decode_uncached(item.request.sample, item.indices))
        except StorageError:
            raise
        except DataError as error:
            failed[place] = str(error)

    def _join(self, parts: list[tuple[list[int], Tensor]], clips: int) -> Tensor:
        if len(parts) == 1 and parts[0][0] == list(range(clips)):
            return parts[0][1]
        shape = (clips, self.graph.frames, self.graph.size, self.graph.size, 3)
        if self.graph.device.type == "cpu":
            joined = np.zeros(shape, np.uint8)  # copied on this thread alone
            for places, part in parts:
                joined[places] = part.numpy()
            return torch.from_numpy(joined)
        out = torch.zeros(shape, dtype=torch.uint8, device=self.graph.device)
        for places, part in parts:
            out[places] = part
        return out


def _with_clip(item: PendingClip, clip: Frames) -> PendingClip:
    item.clip, item.pts_seconds = clip, clip.pts_seconds
    item.missing = item.encoded = None
    return item


def _files(item: PendingClip) -> tuple[CacheMiss, EncodedFrames]:
    """What is to be decoded for an item."""
    assert item.missing is not None and item.encoded is not None
    return item.missing, item.encoded
