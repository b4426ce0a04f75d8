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

from stmeta._util.timers import Timers
from stmeta.data.augment.crop import Window, crop_resize, shown_window
from stmeta.data.decode.pyav import Frames
from stmeta.data.decode.sample import EncodedFrames
from stmeta.data.loading.reader import CacheMiss, ClipReader
from stmeta.data.loading.sampler import ClipRequest

WindowFn = Callable[[int, int, int], Window]  # (seed, height, width) -> window
Requests = Sequence[ClipRequest]
Outputs = Sequence[np.ndarray | None]
PixelTransform = Callable[[Any, int], None]  # changes a clip, `pixel_ops.Frames`, by a seed


@dataclass
class PendingClip:
    """One clip on its way into a batch."""

    request: ClipRequest
    indices: np.ndarray
    """int64 [T], frames of the clip."""
    planned: ClipRequest | None = None
    """What `request` stands in for."""
    pts_seconds: np.ndarray | None = None
    clip: Frames | None = None
    """Decoded frames that still have to be cut and resized."""
    missing: CacheMiss | None = None
    """Frames that DALI has to decode ..."""
    encoded: EncodedFrames | None = None
    """... from this file."""
    leader: PendingClip | None = None
    """An item before it whose `clip`, once decoded, serves this one too."""


class Engine(Protocol):
    """How the loader sees an engine."""

    def prepare(self, requests: Requests, indices: np.ndarray, out: Outputs) -> list[PendingClip]:
        """Read a clip once, for one or more requests of its frames, and do what needs it alone.

        Args:
            requests: of the same sample and the same start.
            indices: int64 [T], frames of the clip.
            out: for each request, its part of what `allocate` returned.

        Raises:
            DataError: the sample is damaged.
        """
        ...

    def allocate(self, clips: int) -> Tensor | None:
        """Memory for the clips of a batch, uint8 [B, T, size, size, 3], or None if not needed."""
        ...

    def finish(
        self, items: Sequence[PendingClip], room: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
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
        for part, (video, seconds) in self.reader.yuv_parts(requests[0].sample, indices):
            pts[part] = seconds
            _, height, width, _ = video.shape
            with self.timers.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    assert pixels is not None
                    window = shown_window(
                        self.window_fn, request.augment_seed, height, width, display
                    )
                    crop_resize(video, window, pixels[part])
        if self.transform is not None:
            with self.timers.measure("augment"):
                for request, pixels in zip(requests, out, strict=True):
                    self.transform(pixels, request.augment_seed)
        return [PendingClip(request, indices, pts_seconds=pts) for request in requests]

    def finish(
        self, items: Sequence[PendingClip], room: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
        """See `Engine`."""
        assert room is not None
        return room, {}

    def close(self) -> None:
        """See `Engine`."""
