"""Small videos that tests make, and their frames as PyAV gives them."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SHARED = Path(__file__).parents[3] / "shared" / "data"  # where the project has real videos


def moving_bars(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: a coarse texture that moves; compresses well, never the same twice."""
    texture = np.random.default_rng(seed).integers(20, 235, (6, 8, 3), dtype=np.uint8)
    texture = texture.repeat(-(-height // 6), 0).repeat(-(-width // 8), 1)[:height, :width]
    return np.stack([np.roll(texture, 2 * t, axis=1) for t in range(frames)])


def decode(video: bytes) -> np.ndarray:
    """uint8 [T, H, W, 3], as PyAV gives it: not rotated."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def remux(video: bytes, suffix: str, pts: Callable[[int], int] | None = None) -> bytes:
    """Put the packets into a new container: an MP4's index at its end; times as `pts` says."""
    out = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(out, "w", format=suffix) as target:
        old = source.streams.video[0]
        new = target.add_stream_from_template(old)
        number = 0
        for packet in source.demux(old):
            if packet.size == 0:
                continue
            if pts:
                packet.time_base = Fraction(1, 1000)
                packet.pts = packet.dts = pts(number)
                packet.duration = 0
            number += 1
            packet.stream = new
            target.mux(packet)
    return out.getvalue()
