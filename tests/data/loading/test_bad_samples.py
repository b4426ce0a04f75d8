"""A sample that failed is not tried again, and a loader that goes on delivers the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stmeta.data.decode.pyav import read_packets
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards

CONFIG = {"batch_size": 4, "frames": 4, "size": 16, "device": "cpu", "max_error_rate": 0.5}


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_video) -> ShardIndex:
    """Eight videos of 40 frames; once they were indexed, one was lost and one got a bad place."""
    root = tmp_path_factory.mktemp("quarantine") / "train"
    samples = (
        EncodedSample(key=f"v{i}", video=make_video(i, frames=40), extension="mp4", label=0)
        for i in range(8)
    )
    index = write_shards(samples, root, classes=["a"])
    path = Path(root) / "000000.tar"
    tar = bytearray(path.read_bytes())
    lost, hurt = index.row(3), index.row(5)
    tar[lost.offset : lost.offset + lost.size] = b"?" * lost.size
    packets = read_packets(index.read(5))
    assert packets is not None
    keys = [int(at) for at in packets.offset[packets.key]]
    # The third of five groups begins with bytes that no decoder takes.
    tar[hurt.offset + keys[2] + 5 : hurt.offset + keys[3]] = b"\xff" * (keys[3] - keys[2] - 5)
    path.write_bytes(tar)
    return index


def run(loader: ClipLoader, epochs: int) -> tuple[list, Counter]:
    """What is delivered, epoch by epoch, and how often each sample was tried."""
    tried, engine = Counter(), loader.collator._engine
    prepare = engine.prepare

    def counted(requests, indices, out):
        tried[requests[0].sample] += 1
        return prepare(requests, indices, out)

    engine.prepare = counted
    seen = [
        [
            (batch.key, batch.frame_index[:, 0].tolist(), batch.video.sum((1, 2, 3, 4)).tolist())
            for batch in loader
        ]
        for _ in range(epochs)
    ]
    return seen, tried


@pytest.mark.parametrize("cache_mib", [0, 1024])
def test_a_lost_sample_is_tried_once_and_the_sequence_is_that_of_a_resumed_run(index, cache_mib):
    config = LoaderConfig(threads=1, cache_mib=cache_mib, **CONFIG)
    with ClipLoader(index, config) as loader:
        seen, tried = run(loader, 6)
        assert {skip.key for skip in loader.skipped} == {"v3", "v5"}
        assert tried[3] == 1 and tried[5] > 1
    delivered = Counter(key for epoch in seen for keys, *_ in epoch for key in keys)
    assert delivered["v3"] == 0 and delivered["v5"] > 0  # its good places come
    for epoch in (2, 5):
        with ClipLoader(index, config) as again:
            again.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": 0})
            assert run(again, 1)[0] == seen[epoch : epoch + 1]


@pytest.mark.parametrize("processes", [0, 1])
def test_the_same_clip_is_tried_once(index, processes):
    """An evaluation asks for the same clips every time: the centre, which is bad in one video."""
    config = LoaderConfig(threads=1, processes=processes, cache_mib=0, train=False, **CONFIG)
    with ClipLoader(index, config) as loader:
        seen, tried = run(loader, 3)
        assert [skip.key for skip in loader.skipped] == ["v3", "v5"]
    assert tried == Counter({sample: 1 if sample in (3, 5) else 3 for sample in range(8)})
    assert seen[0] == seen[1] == seen[2]
