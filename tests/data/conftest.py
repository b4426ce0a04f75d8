from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stmeta.data.ingest.encode import encode_frames
from tests.data._videos import SHARED, moving_bars


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos that are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real videos are not here ({SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    """Encode a moving texture: make_video(seed, frames=, height=, width=, fps=, codec=, ...)."""

    def make(
        seed: int = 0,
        *,
        frames: int = 20,
        height: int = 48,
        width: int = 64,
        fps: float = 25,
        **options,
    ) -> bytes:
        return encode_frames(moving_bars(seed, frames, height, width), fps, gop=8, **options)

    return make
