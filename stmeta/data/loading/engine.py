"""What passes between the sampler, the engines and the collator on the way to a batch.

An engine turns clip requests into pixels, in two steps: `prepare` runs on many threads, one clip
each; `finish` runs on one thread, for the batch. A damaged sample is a DataError of `prepare`, or
is named by `finish`. `HostEngine` (in `reader`) and `DaliEngine` are the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from stmeta.data.augment.crop import Window
from stmeta.data.decode.pyav import Frames
from stmeta.data.decode.sample import EncodedFrames
from stmeta.data.loading.sampler import ClipRequest

WindowFn = Callable[[int, int, int], Window]  # (seed, height, width) -> window
Requests = Sequence[ClipRequest]
Outputs = Sequence[np.ndarray | None]
PixelTransform = Callable[[Any, int], None]  # changes a clip, `pixel_ops.Clip`, by a seed


class CacheMiss(NamedTuple):
    """Frames that are not in memory: what `ClipReader.store` needs once they are decoded.

    Attributes:
        sample: position in the index.
        key: name in the cache.
        frames: int64 [F], frames to decode, ascending: those of the clip, or the whole video.
        indices: int64 [T], frames of the clip.
        reserved: bytes that were set aside in the cache; 0 = will not be kept.
    """

    sample: int
    key: int | tuple[int, bytes]
    frames: np.ndarray
    indices: np.ndarray
    reserved: int


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
        self, items: Sequence[PendingClip], output: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
        """Return the batch, uint8 [B, T, size, size, 3], and reasons by place of damaged clips."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
