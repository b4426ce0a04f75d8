"""Shards of which a tenth of the samples is broken: the good ones come, the others are listed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from stmeta._errors import DataError
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from tests.data._shards import pack, sample

COUNT, FRAMES = 60, 24
BROKEN = ("garbage", "empty", "truncated_mp4", "truncated_webm", "wrong_count", "no_label")


def broken(kind: str, video: bytes, webm: bytes):
    """Members of a sample that is broken in one way."""
    frames = struct.pack("<i", FRAMES)
    if kind == "garbage":
        noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
        return sample(kind, noise, nframes=frames)
    if kind == "empty":
        return sample(kind, b"", nframes=frames)
    if kind == "truncated_mp4":  # its index is in front and still says 24 frames
        return sample(kind, video[: len(video) * 2 // 3], nframes=frames)
    if kind == "truncated_webm":
        return sample(kind, webm[: len(webm) // 2], "webm", nframes=frames)
    if kind == "wrong_count":
        return sample(kind, video, nframes=struct.pack("<i", FRAMES + 7))
    return sample(kind, video, nframes=frames, cls=None, json=b"not json")


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_video) -> Path:
    root = tmp_path_factory.mktemp("broken") / "train"
    frames, members = struct.pack("<i", FRAMES), []
    webm = make_video(99, frames=FRAMES, codec="vp9", height=144, width=176)
    for number in range(COUNT):
        video = make_video(number, frames=FRAMES)
        members.append(sample(f"good{number:02d}", video, nframes=frames))
        if number % 10 == 5:
            members.append(broken(BROKEN[number // 10], video, webm))
    for shard in range(3):
        part = members[shard::3]
        pack(root / f"{shard:06d}.tar", [member for entry in part for member in entry])
    return root


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("processes", [0, 2])
def test_every_good_sample_once_and_every_bad_one_listed(split, train, processes):
    config = LoaderConfig(
        batch_size=6,
        frames=8,
        size=32,
        train=train,
        device="cpu",
        max_error_rate=0.2,
        processes=processes,
        cache_mib=0,
    )
    with ClipLoader(split, config) as loader:
        keys = [key for batch in loader for key in batch.key]
        reasons = {skip.key: skip.reason for skip in loader.skipped}
    assert sorted(keys) == [f"good{number:02d}" for number in range(COUNT)]
    assert sorted(reasons) == sorted(BROKEN)
    assert all(reasons.values())


def test_too_many_stop_with_their_list(split):
    with pytest.raises(DataError, match=r"6 of 66 samples cannot be read.*\n.*: "):
        ClipLoader(split, LoaderConfig(batch_size=6, frames=8, size=32, device="cpu"))
