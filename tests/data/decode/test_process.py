"""Decoding in processes: the same pixels, damage as an error, a crash that costs one sample."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.decode.process import ProcessDecoder
from stmeta.data.decode.sample import SampleDecoder, VideoPlace
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_video) -> ShardIndex:
    root = tmp_path_factory.mktemp("process") / "train"
    samples = [
        EncodedSample(key=f"clip{i}", video=make_video(i, frames=24), extension="mp4", label=i % 2)
        for i in range(8)
    ]
    write_shards(iter(samples), root, classes=["a", "b"])
    return ShardIndex.open(root)


def place(index: ShardIndex, sample: int) -> VideoPlace:
    row = index.row(sample)
    return VideoPlace(row.shard, row.offset, row.size, row.frames, row.rotation, row.fps)


def decoder_processes() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if parent == os.getpid() and b"decode.worker" in command:
            found.add(int(folder.name))
    return found


def test_the_same_frames_as_in_a_thread(index):
    there, here = ProcessDecoder(index.root, 2), SampleDecoder(index.root)
    try:
        for sample in (0, 3, 3, 1):
            indices = np.arange(sample, 20, 3)
            times = Timers()
            ours = there.decode(sample, place(index, sample), indices, times)
            theirs = here.decode(sample, place(index, sample), indices, Timers())
            np.testing.assert_array_equal(ours.video, theirs.video)
            np.testing.assert_array_equal(ours.pts_seconds, theirs.pts_seconds)
            assert times["decode"] > 0
    finally:
        there.close()
    assert not decoder_processes()


def test_the_same_batches(index):
    def clips(processes: int) -> list[np.ndarray]:
        config = LoaderConfig(
            batch_size=3, frames=4, size=24, cache_mib=0, device="cpu", processes=processes
        )
        with ClipLoader(index, config) as loader:
            return [batch.video.numpy().copy() for _ in range(2) for batch in loader]

    for ours, theirs in zip(clips(2), clips(0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_clip_larger_than_the_shared_memory(tmp_path, make_video):
    samples = [EncodedSample(key="big", video=make_video(frames=30, height=320, width=480),
                             extension="mp4", label=0)]  # fmt: skip
    write_shards(iter(samples), tmp_path / "train", classes=["a"])
    index = ShardIndex.open(tmp_path / "train")
    source = ProcessDecoder(index.root, 1)
    try:
        for count in (4, 30, 4):
            video = source.decode(0, place(index, 0), np.arange(count), Timers()).video
            theirs = SampleDecoder(index.root).decode(
                0, place(index, 0), np.arange(count), Timers()
            )
            np.testing.assert_array_equal(video, theirs.video)
    finally:
        source.close()


def test_damage_is_an_error_with_its_reason(index):
    source = ProcessDecoder(index.root, 1)
    try:
        with pytest.raises(DataError, match=r"the shard ends inside this sample"):
            source.decode(0, place(index, 0)._replace(offset=10**9), np.arange(3), Timers())
        with pytest.raises(DataError, match=r"the index says 23 frames, the file has 24"):
            source.decode(0, place(index, 0)._replace(frames=23), np.arange(3), Timers())
        assert len(source.decode(1, place(index, 1), np.arange(3), Timers()).video) == 3
    finally:
        source.close()


def test_a_dead_process_costs_one_sample(index):
    source = ProcessDecoder(index.root, 1)
    try:
        source.decode(0, place(index, 0), np.arange(3), Timers())
        (pid,) = decoder_processes()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"ended the decoder's process \(status -9\)"):
            source.decode(0, place(index, 0), np.arange(3), Timers())
        assert len(source.decode(0, place(index, 0), np.arange(3), Timers()).video) == 3
    finally:
        source.close()


def test_processes_end_with_their_parent(index):
    root = Path(__file__).parents[3]
    code = (
        "import os, signal, numpy as np\n"
        "from stmeta.data.decode.process import ProcessDecoder\n"
        "from stmeta.data.decode.sample import VideoPlace\n"
        "from stmeta._util.timers import Timers\n"
        "from pathlib import Path\n"
        f"source = ProcessDecoder(Path({str(index.root)!r}), 1)\n"
        f"source.decode(0, VideoPlace(*{tuple(place(index, 0))!r}), np.arange(3), Timers())\n"
        "print(source._workers[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=180,
    )
    pid = int(done.stdout)
    for _ in range(600):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.1"])
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the decoder's process outlived its parent")
