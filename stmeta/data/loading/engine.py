"""Turns clip requests into the pixels of a batch: what an engine is, and the one of the host.

An engine works in two steps. `prepare` runs on many threads, one clip each; `finish` runs on one
thread, for the batch. A damaged sample is a DataError of `prepare`, or is named by `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stmeta._util.timers import Times
from stmeta.data.augment.crop import Window, crop_resize, shown_window
from stmeta.data.decode.sample import Encoded
from stmeta.data.loading.reader import Clip, ClipReader, Missing
from stmeta.data.loading.sampler import ClipRequest

Draw = Callable[[int, int, int], Window]  # (seed, height, width) -> window
Requests = Sequence[ClipRequest]
Rooms = Sequence[np.ndarray | None]
Alter = Callable[[Any, int], None]  # changes a clip, `pixel_ops.Clip`, by a seed


@dataclass
class Item:
    """One clip on its way into a batch."""

    request: ClipRequest
    indices: np.ndarray
    """int64 [T], frames of the clip."""
    planned: ClipRequest | None = None
    """What `request` stands in for."""
    pts_seconds: np.ndarray | None = None
    clip: Clip | None = None
    """Decoded frames that still have to be cut and resized."""
    missing: Missing | None = None
    """Frames that DALI has to decode ..."""
    encoded: Encoded | None = None
    """... from this file."""
    leader: Item | None = None
    """An item before it whose `clip`, once decoded, serves this one too."""


class Engine(Protocol):
    """How the loader sees an engine."""

    def prepare(self, requests: Requests, indices: np.ndarray, out: Rooms) -> list[Item]:
        """Read a clip once, for one or more requests of its frames, and do what needs it alone.

        Args:
            requests: of the same sample and the same start.
            indices: int64 [T], frames of the clip.
            out: for each request, its part of what `make_room` returned.

        Raises:
            DataError: the sample is damaged.
        """
        ...

    def make_room(self, clips: int) -> Tensor | None:
        """Memory for the clips of a batch, uint8 [B, T, size, size, 3], or None if not needed."""
        ...

    def finish(self, items: Sequence[Item], room: Tensor | None) -> tuple[Tensor, dict[int, str]]:
        """Return the batch, uint8 [B, T, size, size, 3], and reasons by place of damaged clips."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class HostEngine:
    """PyAV decodes, torch or the extension resizes: a clip is done when its thread is."""

    def __init__(
        self,
        reader: ClipReader,
        draw: Draw,
        times: Times,
        *,
        frames: int,
        size: int,
        pin: bool,
        alter: Alter | None = None,
    ) -> None:
        """Make an engine; `pin` allocates batches in page-locked memory."""
        self.reader, self.draw, self.alter, self.times = reader, draw, alter, times
        self.shape, self.pin = (frames, size, size, 3), pin

    def make_room(self, clips: int) -> Tensor:
        """See `Engine`."""
        return torch.empty((clips, *self.shape), dtype=torch.uint8, pin_memory=self.pin)

    def prepare(self, requests: Requests, indices: np.ndarray, out: Rooms) -> list[Item]:
        """See `Engine`."""
        pts = np.empty(len(indices))
        display = self.reader.row(requests[0].sample).display
        for part, (video, seconds) in self.reader.yuv_parts(requests[0].sample, indices):
            pts[part] = seconds
            _, height, width, _ = video.shape
            with self.times.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    assert pixels is not None
                    window = shown_window(self.draw, request.draw, height, width, display)
                    crop_resize(video, window, pixels[part])
        if self.alter is not None:
            with self.times.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    self.alter(pixels, request.draw)
        return [Item(request, indices, pts_seconds=pts) for request in requests]

    def finish(self, items: Sequence[Item], room: Tensor | None) -> tuple[Tensor, dict[int, str]]:
        """See `Engine`."""
        assert room is not None
        return room, {}

    def close(self) -> None:
        """See `Engine`."""
