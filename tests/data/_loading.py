"""Small splits for a loader, whole and damaged, and batches to compare."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stmeta.data.decode.choice import dali_problem
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from tests.data._videos import moving_bars

needs_dali = pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")
COUNT, FRAMES = 26, 24
BROKEN = {"clip3", "clip11", "clip20"}


def sample(number: int, codec: str = "h264", frames: int = FRAMES) -> EncodedSample:
    video = encode_frames(moving_bars(number, frames, 48, 64), 25, codec=codec, gop=8)
    extension = {"h264": "mp4", "vp9": "webm", "vp8": "webm", "mjpeg": "avi"}[codec]
    return EncodedSample(key=f"clip{number}", video=video, extension=extension, label=number % 3)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """26 H.264 videos of 24 frames in several shards; one of 5 frames."""
    root = tmp_path_factory.getbasetemp() / "loading" / "train"
    if not root.exists():  # the modules that use it share it
        samples = (sample(i, frames=5 if i == 7 else FRAMES) for i in range(COUNT))
        write_shards(samples, root, classes=["a", "b", "c"], shard_mib=0.02)
    assert len(list(root.glob("*.tar"))) > 2
    return root


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """H.264, VP9, VP8 and Motion JPEG in turn."""
    root = tmp_path_factory.mktemp("mixed") / "train"
    codecs = ["h264", "vp9", "vp8", "mjpeg"]
    write_shards((sample(i, codecs[i % 4]) for i in range(12)), root, classes=["a", "b", "c"])
    return root


@pytest.fixture
def broken(split, tmp_path) -> Path:
    """A copy with three videos overwritten by garbage, which its index does not know."""
    root = copied(split, tmp_path)
    index = ShardIndex.open(root)
    rows = [index.row(i) for i in range(len(index)) if index.row(i).key in BROKEN]
    for row in rows:
        overwrite(root / row.shard, row.offset, np.random.default_rng(0).bytes(row.size))
    return root


def copied(root: Path, folder: Path) -> Path:
    """A copy of a split, with the names of its classes; its files are new, so its index is old."""
    (folder / "train").mkdir()
    for path in root.iterdir():
        (folder / "train" / path.name).write_bytes(path.read_bytes())
    (folder / "classes.json").write_bytes((root.parent / "classes.json").read_bytes())
    return folder / "train"


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Change a shard so that its index does not notice."""
    stat = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def config(**options) -> LoaderConfig:
    options = {"batch_size": 4, "frames": 8, "size": 32, "device": "cpu", **options}
    return LoaderConfig(**options)


def batches(root: Path, count: int = 0, **options) -> list:
    """An epoch, or `count` batches of several."""
    found: list = []
    with ClipLoader(root, config(**options)) as loader:
        while True:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    return found
            if not count:
                return found


def same(first, second) -> bool:
    fields = ("video", "label", "frame_index", "pts_seconds")
    return first.key == second.key and all(
        torch.equal(getattr(first, field), getattr(second, field)) for field in fields
    )


def all_same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def reference(video: bytes) -> np.ndarray:
    """Every frame, by PyAV's plainest loop."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
