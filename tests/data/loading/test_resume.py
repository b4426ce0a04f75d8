"""A loader goes on exactly where it stopped, in one process and on another number of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards

ROOT = Path(__file__).parents[3]
CONFIG = {"frames": 4, "stride": 2, "size": 16, "threads": 1, "device": "cpu", "cache_mib": 0}


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_video) -> ShardIndex:
    root = tmp_path_factory.mktemp("resume") / "train"
    samples = (
        EncodedSample(key=f"clip{i:02d}", video=make_video(i, frames=24), extension="mp4", label=0)
        for i in range(48)
    )
    write_shards(samples, root, classes=["a"])
    return ShardIndex.open(root)


def rows(batch: ClipBatch) -> list[tuple[str, int, int]]:
    """Key, clip start, and a hash of the pixels, which tells the augmentation."""
    starts = batch.frame_index[:, 0].tolist()
    pixels = [hash(clip.numpy().tobytes()) for clip in batch.video]
    return list(zip(batch.key, starts, pixels, strict=True))


def test_killed_at_twenty_points(index):
    config = LoaderConfig(batch_size=4, **CONFIG)
    with ClipLoader(index, config) as loader:
        whole = [rows(batch) for _ in range(2) for batch in loader]
    points = random.Random(0).sample(range(1, len(whole)), 20)
    for point in points:
        with ClipLoader(index, config) as loader:
            stream = (batch for _ in range(2) for batch in loader)
            for _ in range(point):
                next(stream)
            state = loader.state_dict()
        with ClipLoader(index, config) as loader:
            loader.load_state_dict(json.loads(json.dumps(state)))
            stream = (batch for _ in range(2) for batch in loader)
            rest = [rows(next(stream)) for _ in range(len(whole) - point)]
        assert rest == whole[point:]


SCRIPT = """
import json, os, sys
import torch.distributed as dist
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
config = LoaderConfig(batch_size=4, **json.loads(sys.argv[2]))
with ClipLoader(sys.argv[1], config, rank=rank, world_size=world) as loader:
    stream = iter(loader)
    seen = [[*zip(batch.key, batch.frame_index[:, 0].tolist())] for _, batch in zip((1, 2), stream)]
    everyone = [None] * world
    dist.all_gather_object(everyone, seen)
    if rank == 0:
        print(json.dumps({"seen": everyone, "state": loader.state_dict()}))
dist.destroy_process_group()
"""


def test_two_ranks_then_one_lose_and_repeat_nothing(index, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(script), str(index.root), json.dumps(CONFIG)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    first = [tuple(row) for rank in result["seen"] for batch in rank for row in batch]
    with ClipLoader(index, LoaderConfig(batch_size=8, **CONFIG)) as loader:
        loader.load_state_dict(result["state"])
        rest = [row[:2] for batch in loader for row in rows(batch)]
    with ClipLoader(index, LoaderConfig(batch_size=8, **CONFIG)) as loader:
        alone = [row[:2] for batch in loader for row in rows(batch)]
    assert sorted(first + rest) == sorted(alone)
    assert len({key for key, _ in first + rest}) == 48
