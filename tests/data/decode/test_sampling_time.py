"""Clips sampled by time: so many frames a second, whatever the video's rate is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stmeta.data.decode import pyav
from stmeta.data.decode.choice import dali_problem
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.loading.sampler import ClipRequest, ClipSampler, nearest_frames
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from tests.data._videos import moving_bars, remux

FRAMES = 40


def slowing(number: int) -> int:
    """Milliseconds: 25 frames a second at first, 10 from the 20th on."""
    return 40 * number if number < 20 else 800 + 100 * (number - 20)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """Videos at 25 and 12.5 frames a second, at a varying rate, one short, one without times."""
    root = tmp_path_factory.mktemp("time") / "train"

    def encode(seed: int, fps: float, frames: int = FRAMES, codec: str = "h264") -> bytes:
        return encode_frames(moving_bars(seed, frames, 48, 64), fps, gop=8, codec=codec)

    videos = {
        "fast": (encode(0, 25), "mp4"),
        "slow": (encode(1, 12.5), "mp4"),
        "varying": (remux(encode(2, 25, codec="mjpeg"), "matroska", slowing), "mkv"),
        "short": (encode(3, 25, frames=5), "mp4"),
        "varying vp9": (remux(encode(4, 25, codec="vp9"), "matroska", slowing), "mkv"),
    }
    samples = (
        EncodedSample(key=key.replace(" ", "-"), video=video, extension=extension, label=0)
        for key, (video, extension) in videos.items()
    )
    write_shards(samples, root, classes=["a"])
    index = ShardIndex.open(root)
    assert [index.row(i).variable_rate for i in range(5)] == [False, False, True, False, True]
    return root


def make(root: Path, **options) -> ClipLoader:
    options = {"batch_size": 5, "frames": 8, "size": 48, "device": "cpu", "fps": 10.0, **options}
    return ClipLoader(root, LoaderConfig(**options))


def times(key: str) -> np.ndarray:
    """Seconds of a video's frames, as the fixture made them."""
    if key.startswith("varying"):
        return np.array([slowing(i) for i in range(FRAMES)]) / 1000
    return np.arange(5 if key == "short" else FRAMES) / (12.5 if key == "slow" else 25)


def test_nearest_frames():
    seconds = np.array([0.0, 0.1, 0.5, 0.6])
    wanted = np.array([-1.0, 0.04, 0.06, 0.29, 0.3, 0.31, 0.56, 9.0])
    assert nearest_frames(seconds, wanted).tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert nearest_frames(np.zeros(1), wanted).tolist() == [0] * 8
    random = np.random.default_rng(0)
    for _ in range(20):
        seconds, wanted = np.sort(random.random(9)), random.uniform(-0.2, 1.2, 50)
        plain = np.abs(wanted[:, None] - seconds).argmin(1)
        np.testing.assert_array_equal(nearest_frames(seconds, wanted), plain)


def test_a_clip_that_starts_between_two_frames_does_not_waver():
    plan = ClipSampler(np.array([40]), clip_frames=16, batch_size=1, fps=12.5, train=False)
    # The middle: 0.18 s, as far from frame 4 as from frame 5, and so on at every step.
    found = plan.indices(plan.request(0, 0), np.arange(40) / 25)
    assert np.diff(found).tolist() == [2] * 15 and found[0] == 4


def test_a_plan_draws_a_share_of_the_time_that_is_left():
    plan = ClipSampler(np.full(3, 50), clip_frames=5, batch_size=3, fps=5.0)
    starts = [r.start for epoch in range(300) for r in plan.batch(epoch, 0)]
    assert 0 <= min(starts) < 0.01 and 0.99 < max(starts) < 1
    assert abs(np.mean(starts) - 0.5) < 0.05
    seconds = np.arange(50) / 25  # room for 1.96 - 0.8 s
    assert plan.indices(ClipRequest(0, 0.0, 0), seconds).tolist() == [0, 5, 10, 15, 20]
    assert plan.indices(ClipRequest(0, 0.999, 0), seconds).tolist() == [29, 34, 39, 44, 49]
    views = ClipSampler(np.full(1, 50), clip_frames=5, batch_size=3, fps=5.0, train=False, views=3)
    firsts = [int(views.indices(r, seconds)[0]) for r in views.batch(0, 0)]
    assert firsts == [0, 14, 29]
    with pytest.raises(ValueError, match="fps must be above 0, got 0"):
        ClipSampler(np.full(3, 50), clip_frames=5, batch_size=3, fps=0)


@pytest.mark.parametrize("options", [{}, {"train": False, "views": 3}])
def test_frames_are_the_nearest_in_time(split, options):
    with make(split, **options) as loader:
        epochs = 3 if options else 8
        requests = [
            loader.sampler.clip(i, epoch=e, view=e) for e in range(epochs) for i in range(5)
        ]
        batch = loader.load(requests)
    starts = {}
    for i, key in enumerate(batch.key):
        seconds, found = times(key), batch.frame_index[i].numpy()
        room = max(0.0, seconds[-1] - 0.7)
        wanted = requests[i].start * room + np.arange(8) / 10
        distance = np.abs(seconds[found] - wanted)
        least = np.abs(seconds - wanted[:, None]).min(1)
        np.testing.assert_allclose(distance, least, atol=2e-6)
        np.testing.assert_allclose(batch.pts_seconds[i], seconds[found], atol=1e-6)
        starts.setdefault(key, set()).add(int(found[0]))
    assert starts.pop("short") == {0}
    assert all(len(found) >= 3 for found in starts.values())
    assert batch.frame_index[3].tolist() == [0, 2, 4, 4, 4, 4, 4, 4]


def test_a_varying_rate_gives_even_steps_in_time(split):
    """By stride, the second half of these videos would run at two fifths of the speed."""
    with make(split, frames=6, fps=10.0) as loader:
        batch = loader.load([ClipRequest(2, share, 0) for share in (0.0, 0.3, 0.6, 0.9)])
    early, late = batch.frame_index[0].tolist(), batch.frame_index[3].tolist()
    assert early == [0, 2, 5, 7, 10, 12]  # 100 ms apart, of frames 40 ms apart
    assert np.diff(late).tolist() == [1] * 5  # of frames 100 ms apart
    steps = batch.pts_seconds.diff(dim=1)
    assert float((steps - 0.1).abs().max()) < 0.061


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("cache_mib", [0, 64])
def test_pixels_are_those_of_the_named_frames(split, train, cache_mib):
    index = ShardIndex.open(split)
    with make(split, train=train, hflip=0, crop="plain", cache_mib=cache_mib, views=2) as loader:
        for _ in range(2):  # from the file, then from memory
            loader.set_epoch(0)
            for batch in loader:
                for i, key in enumerate(batch.key):
                    (row,) = (j for j in range(5) if index.row(j).key == key)
                    frames = decode_all(index.read(row))[batch.frame_index[i].numpy()]
                    video = batch.video[i].permute(0, 2, 3, 1).numpy()
                    windows = (frames[:, :, x : x + 48] for x in range(17))
                    assert any(np.array_equal(video, window) for window in windows)


def decode_all(video: bytes) -> np.ndarray:
    packets = pyav.read_packets(video)
    assert packets is not None
    return pyav.decode(video, np.arange(packets.frames), packets=packets).video


def test_views_that_begin_with_the_same_frame_are_not_mixed_up(split):
    """They may differ later: two shares of the time, one first frame."""
    first = ClipRequest(0, 0.0, 0)
    with make(split, train=False, fps=7.0) as loader:
        one = loader.load([first])
        two = loader.load([first._replace(start=0.033)])
        assert one.frame_index[0, 0] == two.frame_index[0, 0]
        assert not torch.equal(one.frame_index, two.frame_index)
        assert not torch.equal(one.video, two.video)


def test_times_are_the_files_own_where_packets_are_not_listed(split, monkeypatch):
    monkeypatch.setattr(pyav, "read_packets", lambda video: None)
    with make(split) as loader:
        np.testing.assert_allclose(loader.collator.reader.seconds(2), times("varying"), atol=1e-6)


def test_a_varying_file_is_listed_once(split, monkeypatch):
    calls = []
    listed = pyav.read_packets
    monkeypatch.setattr(pyav, "read_packets", lambda video: calls.append(1) or listed(video))
    with make(split) as loader:
        reader = loader.collator.reader
        first = reader.seconds(4)
        assert reader.seconds(4) is first and len(calls) == 1
        reader.seconds(0)
        assert len(calls) == 1  # the index knows all of a constant rate
    np.testing.assert_allclose(first, times("varying"), atol=1e-6)


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_is_exact(split, stop):
    def run(loader: ClipLoader, count: int) -> list:
        found: list = []
        while len(found) < count:
            found += list(loader)
        return found

    with make(split, batch_size=2, repeats=2) as loader:
        expected = run(loader, 10)
    with make(split, batch_size=2, repeats=2) as loader:
        for _, _batch in zip(range(stop), loader, strict=False):
            pass
        state = loader.state_dict()
    with make(split, batch_size=2, repeats=2, threads=1, cache_mib=0) as loader:
        loader.load_state_dict(state)
        found = run(loader, 10 - stop)
    for a, b in zip(found, expected[stop:], strict=False):
        assert a.key == b.key and torch.equal(a.video, b.video)
        assert torch.equal(a.pts_seconds, b.pts_seconds)


@pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")
def test_dali_takes_the_same_frames(split):
    with make(split, decoder="dali") as loader, make(split) as plain:
        for a, b in zip(loader, plain, strict=True):
            assert torch.equal(a.frame_index, b.frame_index)
            torch.testing.assert_close(a.pts_seconds, b.pts_seconds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0.0}, "fps must be above 0, or None, got 0.0"),
        ({"fps": float("inf")}, "fps must be above 0"),
        ({"stride": 2}, "stride must be 1 where fps says which frames are taken, got 2"),
        ({"align": 4}, "align must be auto where fps is given, got 4"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**{"fps": 10.0, **options})
