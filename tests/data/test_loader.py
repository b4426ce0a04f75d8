from __future__ import annotations

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stmeta._errors import DataError
from stmeta.data.decode import dali, dali_problem, pyav
from stmeta.data.encode import encode_frames
from stmeta.data.loader import ClipLoader, LoaderConfig
from stmeta.data.plan import ClipRequest
from stmeta.data.shards import EncodedSample, ShardIndex, write_shards

needs_dali = pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")
COUNT, FRAMES = 26, 24


def moving(seed: int, frames: int = FRAMES, height: int = 48, width: int = 64) -> np.ndarray:
    random = np.random.default_rng(seed)
    texture = random.integers(20, 235, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(texture, 2 * t, axis=1)[:height, :width] for t in range(frames)])


def sample(number: int, codec: str = "h264", frames: int = FRAMES) -> EncodedSample:
    video = encode_frames(moving(number, frames), 25, codec=codec, gop=8)
    extension = {"h264": "mp4", "vp9": "webm", "vp8": "webm", "mjpeg": "avi"}[codec]
    return EncodedSample(key=f"clip{number}", video=video, extension=extension, label=number % 3)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """26 H.264 videos of 24 frames in several shards; one of 5 frames."""
    root = tmp_path_factory.mktemp("plain") / "train"
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
    root = tmp_path / "train"
    root.mkdir()
    for path in split.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    (tmp_path / "classes.json").write_bytes((split.parent / "classes.json").read_bytes())
    index = ShardIndex.open(root)
    rows = [index.row(i) for i in range(len(index)) if index.row(i).key in BROKEN]
    for row in rows:
        overwrite(root / row.shard, row.offset, np.random.default_rng(0).bytes(row.size))
    return root


BROKEN = {"clip3", "clip11", "clip20"}


def overwrite(path: Path, offset: int, content: bytes) -> None:
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


def test_evaluation_equals_a_plain_decode(split):
    """Size-equal centre crop: every pixel is the decoder's."""
    index = ShardIndex.open(split)
    found = batches(split, train=False, size=48, batch_size=5)
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 5, 1]
    number = 0
    for batch in found:
        for i in range(len(batch)):
            frames = reference(index.read(number))
            start = max(0, (len(frames) - 8) // 2)
            places = np.minimum(start + np.arange(8), len(frames) - 1)
            exact = frames[places][:, :, 8:56]
            np.testing.assert_array_equal(batch.video[i].permute(0, 2, 3, 1).numpy(), exact)
            np.testing.assert_array_equal(batch.frame_index[i], places)
            np.testing.assert_allclose(batch.pts_seconds[i], places / 25, atol=1e-6)
            assert batch.key[i] == index.row(number).key
            assert batch.label[i] == index.labels[number]
            number += 1
    assert number == COUNT


def reference(video: bytes) -> np.ndarray:
    """Every frame, by PyAV's plainest loop."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_batch_layout(split):
    batch = batches(split, 1)[0]
    assert batch.video.shape == (4, 8, 3, 32, 32) and batch.video.dtype == torch.uint8
    assert batch.video.permute(0, 1, 3, 4, 2).is_contiguous()  # channels innermost, not copied
    assert batch.label.dtype == batch.frame_index.dtype == torch.int64
    assert batch.pts_seconds.dtype == torch.float64 and batch.frame_index.shape == (4, 8)
    assert int(batch.video.float().mean()) in range(60, 200)


@pytest.mark.parametrize("options", [{"crop_scale": (0.3, 1.0)}, {"crop": "plain"}])
def test_pixels_depend_on_nothing_but_the_plan(split, options):
    expected = batches(split, 14, threads=1, prefetch=0, cache_mib=0, **options)
    assert not same(expected[0], expected[6])
    for other in ({"threads": 3, "prefetch": 3}, {"cache_mib": 0.5}, {"cache_mib": 64}):
        assert all_same(batches(split, 14, **options, **other), expected)
    assert not same(batches(split, 1, seed=1, **options)[0], expected[0])


@pytest.mark.parametrize("stop", [1, 5, 6, 8, 12])
def test_resume_is_exact(split, stop):
    expected = batches(split, 14)
    with ClipLoader(split, config()) as loader:
        assert len(loader) == 6
        found = []
        while len(found) < stop:
            for batch in loader:
                found.append(batch)
                if len(found) == stop:
                    break
        state = loader.state_dict()
    assert all(type(value) is int for value in state.values())
    assert (state["epoch"], state["position"]) == divmod(stop, 6)
    with ClipLoader(split, config(threads=1)) as loader:
        loader.load_state_dict(state)
        while len(found) < 14:
            for batch in loader:
                found.append(batch)
                if len(found) == 14:
                    break
    assert all_same(found, expected)


def test_resume_with_another_number_of_ranks(split):
    with ClipLoader(split, config(batch_size=4)) as loader:
        for _, _batch in zip(range(2), loader, strict=False):
            pass
        state = loader.state_dict()
        expected = next(iter(loader))
    parts = []
    for rank in range(2):
        with ClipLoader(split, config(batch_size=2), rank=rank, world_size=2) as loader:
            loader.load_state_dict(state)
            parts.append(next(iter(loader)))
    assert parts[0].key + parts[1].key == expected.key
    assert torch.equal(torch.cat([part.video for part in parts]), expected.video)


def test_a_state_of_other_data_is_refused(split, mixed):
    with ClipLoader(split, config()) as loader, ClipLoader(mixed, config()) as other:
        with pytest.raises(ValueError, match="samples = 26, this loader has 12"):
            other.load_state_dict(loader.state_dict())
        with pytest.raises(
            ValueError, match=r"position 1 of batches of 3 clips .* keep batch_size"
        ):
            loader.load_state_dict({"epoch": 0, "position": 1, "step": 3})


def test_set_epoch_and_leaving_early(split):
    with ClipLoader(split, config(train=False)) as loader:
        first = list(loader)
        loader.set_epoch(0)
        for batch in loader:
            assert same(batch, first[0])
            break
        assert same(next(iter(loader)), first[1])  # goes on
        loader.set_epoch(0)
        assert all_same(list(loader), first)


def test_short_videos_hold_their_last_frame(split):
    with ClipLoader(split, config(train=False, frames=9)) as loader:
        batch = loader.load([ClipRequest(7, 0, 0), ClipRequest(0, 3, 0)])
    assert batch.frame_index.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 4], list(range(3, 12))]
    video = batch.video[0]
    assert (video[4:] == video[4]).all() and not torch.equal(video[3], video[4])
    assert batch.key == ["clip7", "clip0"]


def test_broken_videos_are_replaced_and_reported(broken):
    index = ShardIndex.open(broken)
    label = {index.row(i).key: index.row(i).label for i in range(len(index))}
    with ClipLoader(broken, config(max_error_rate=0.2)) as loader:
        found = [batch for _ in range(2) for batch in loader]
        assert [len(batch) for batch in found] == [4] * 12
        assert {skip.key for skip in loader.skipped} == BROKEN
        assert len(loader.skipped) == 3 and all(skip.reason for skip in loader.skipped)
        assert loader.stats()["skipped"] == 3
        for epoch in range(2):
            for position in range(6):
                batch = found[6 * epoch + position]
                planned = [index.row(r.sample).key for r in loader.plan.batch(epoch, position)]
                for key, wanted in zip(batch.key, planned, strict=True):
                    assert key == wanted or wanted in BROKEN
                    assert key not in BROKEN and label[key] == label[wanted]
        state = {"epoch": 1, "position": 0}
    with ClipLoader(broken, config(max_error_rate=0.2, cache_mib=0)) as loader:
        loader.load_state_dict(state)
        assert all_same(list(loader), found[6:])


def test_evaluation_leaves_broken_videos_out(broken):
    with ClipLoader(broken, config(train=False, max_error_rate=0.2)) as loader:
        keys = [key for batch in loader for key in batch.key]
    assert keys == [f"clip{i}" for i in range(COUNT) if f"clip{i}" not in BROKEN]


def test_too_many_broken_videos_stop_the_run_with_their_list(broken):
    with (
        ClipLoader(broken, config(max_error_rate=0.05, prefetch=0)) as loader,
        pytest.raises(
            DataError, match=r"[23] of 26 samples cannot be read(.|\n)*clip\d+ \(0.*tar\): "
        ),
    ):
        list(loader)


def test_a_stale_index_is_built_again_and_lists_the_broken(broken):
    for path in broken.glob("*.tar"):
        os.utime(path)
    with ClipLoader(broken, config(max_error_rate=0.2)) as loader:
        assert {skip.key for skip in loader.skipped} == BROKEN
        assert len(loader.index) == COUNT - 3
        assert len(list(loader)) == 5
        assert len(loader.skipped) == 3
    with pytest.raises(DataError, match="3 of 26 samples cannot be read"):
        ClipLoader(broken, config())


def test_a_video_cut_short_is_found(broken):
    """Same size in the shard, zeros after the middle, as a crashed copy leaves it."""
    index = ShardIndex.open(broken)
    row = index.row(0)
    half = row.size // 2
    overwrite(broken / row.shard, row.offset + half, bytes(row.size - half))
    with ClipLoader(broken, config(max_error_rate=0.5, train=False)) as loader:
        list(loader)
        assert row.key in {skip.key for skip in loader.skipped}


def test_a_missing_shard_is_an_error(split, tmp_path):
    index = ShardIndex.open(split)
    index.root = tmp_path
    with (
        ClipLoader(index, config()) as loader,
        pytest.raises(DataError, match="cannot be read: No such file"),
    ):
        next(iter(loader))


def test_unexpected_errors_name_the_sample(split, monkeypatch):
    monkeypatch.setattr(pyav, "decode", lambda *_, **__: 1 / 0)
    with ClipLoader(split, config()) as loader, pytest.raises(ZeroDivisionError) as caught:
        next(iter(loader))
    assert "while reading sample 'clip" in caught.value.__notes__[0]


def test_nothing_is_decoded_twice_when_the_set_fits(split, monkeypatch):
    with ClipLoader(split, config(cache_mib=64)) as loader:
        for _ in range(4):  # an epoch drops two of the 26
            list(loader)
        list(loader.load([loader.plan.clip(i) for i in range(COUNT)]).key)
        for name in ("decode", "decode_yuv"):
            monkeypatch.setattr(pyav, name, lambda *_, **__: pytest.fail("decoded again"))
        for _ in range(2):
            assert len(list(loader)) == 6
        stats = loader.stats()
    assert stats["cache_misses"] < 2 * COUNT and stats["cache_hits"] > 5 * COUNT
    assert 0 < stats["cache_mib"] < 64


def test_a_cache_that_is_too_small_keeps_what_it_has(split):
    with ClipLoader(split, config(cache_mib=2)) as loader:
        shares = []
        for _ in range(3):
            before = loader.stats()
            list(loader)
            after = loader.stats()
            shares.append(after["cache_hits"] - before["cache_hits"])
            assert after["cache_mib"] <= 2
    assert min(shares[1:]) >= 6  # 8 videos of 24 fit, each epoch misses two of 26


def test_stats(split):
    with ClipLoader(split, config()) as loader:
        list(loader)
        stats = loader.stats()
    assert stats["clips"] == 24 and stats["decoder"] == "pyav"
    assert stats["clips_per_second"] == pytest.approx(24 / stats["elapsed_seconds"])
    assert 0 < stats["wait_seconds"] <= stats["elapsed_seconds"] and 0 < stats["wait_share"] <= 1
    assert stats["bound"] in ("read", "decode", "augment") and stats["decode_seconds"] > 0


def test_the_log_says_what_decodes_and_why(split, caplog):
    with caplog.at_level(logging.INFO, "stmeta.data"), ClipLoader(split, config()):
        pass
    (line,) = [r.getMessage() for r in caplog.records if "decodes" in r.getMessage()]
    assert "26 videos (h264), 0 bad" in line and "PyAV decodes, torch resizes" in line
    assert "least CPU time" in line and "holds all" in line


def test_threads_end(split):
    def ours() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("stmeta")}

    assert not ours()
    with ClipLoader(split, config()) as loader:
        assert not ours()  # nothing runs before the first batch
        next(iter(loader))
        assert ours()
    assert not ours()
    loader.close()
    with pytest.raises(ValueError, match="it was closed"):
        next(iter(loader))


def test_a_forgotten_loader_stops_its_threads(split):
    loader = ClipLoader(split, config())
    next(iter(loader))
    del loader
    gc.collect()
    deadline = time.monotonic() + 60
    while any(t.name.startswith("stmeta") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_ends_a_program_that_never_closes_its_loader(split):
    code = (
        "import signal, sys\n"
        # A shell starts background jobs with Ctrl-C ignored, and they hand that on.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stmeta.data.loader import ClipLoader, LoaderConfig\n"
        "loader = ClipLoader(sys.argv[1], LoaderConfig(batch_size=4, frames=8, cache_mib=0))\n"
        "while True:\n"
        "    for batch in loader:\n"
        "        print(len(batch), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(split)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == b"4\n"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=180)
    assert b"KeyboardInterrupt" in errors and program.returncode == -signal.SIGINT


def test_load_takes_any_number_of_clips(split):
    with ClipLoader(split, config()) as loader:
        requests = loader.plan.batch(3, 1) + loader.plan.batch(0, 0)[:3]
        batch = loader.load(requests)
        loader.set_epoch(3)
        second = list(loader)[1]
    assert len(batch) == 7 and batch.video.shape[0] == 7
    assert torch.equal(batch.video[:4], second.video) and batch.key[:4] == second.key


def test_a_sweep_shows_every_video_once(split, broken):
    with ClipLoader(split, config()) as loader:
        first = next(iter(loader))
        found = list(loader.sweep(view=0))
        assert [key for batch in found for key in batch.key] == [f"clip{i}" for i in range(COUNT)]
        place = found[int(first.key[2][4:]) // 4]
        number = place.key.index(first.key[2])
        assert torch.equal(place.video[number], first.video[2])  # as epoch 0 shows it
        assert not same(next(iter(loader.sweep(view=1))), found[0])
        assert loader.state_dict()["position"] == 1
    with ClipLoader(broken, config(max_error_rate=0.2)) as loader:
        assert sum(len(batch) for batch in loader.sweep()) == COUNT - 3


def test_ranks_see_different_clips(split):
    keys = []
    for rank in range(2):
        with ClipLoader(split, config(), rank=rank, world_size=2) as loader:
            found = [key for batch in loader for key in batch.key]
            assert len(found) == len(loader) * 4 == 12
            keys += found
    assert len(set(keys)) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"prefetch": -1}, "prefetch must be 0 or more"),
        ({"hflip": 1.5}, r"hflip must be in \[0, 1\], got 1.5"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale must be \(low, high\), ascending"),
        ({"crop_ratio": (0, 1)}, "crop_ratio must be"),
        ({"crop": "none"}, "crop must be resized or plain, got 'none'"),
        ({"decoder": "nvdec"}, "decoder must be auto, dali or pyav, got 'nvdec'"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**options)


def test_mixed_codecs(mixed):
    found = batches(mixed, train=False, size=48)
    index = ShardIndex.open(mixed)
    assert index.codecs == {"h264", "vp9", "vp8", "mjpeg"}
    for number, clip in enumerate(torch.cat([batch.video for batch in found])):
        exact = reference(index.read(number))[8:16, :, 8:56]
        np.testing.assert_array_equal(clip.permute(0, 2, 3, 1).numpy(), exact)


@needs_dali
def test_dali_serves_mixed_codecs(mixed):
    plain = batches(mixed, decoder="pyav", hflip=1)
    found = batches(mixed, decoder="dali", hflip=1)
    assert all_same(batches(mixed, decoder="dali", hflip=1, cache_mib=0, threads=1), found)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key and torch.equal(got.frame_index, exact.frame_index)
        torch.testing.assert_close(got.pts_seconds, exact.pts_seconds)
        assert got.video.permute(0, 1, 3, 4, 2).is_contiguous()
        error = ((got.video.float() - exact.video.float()) * luma).sum(2).abs()
        assert error.mean() < 3


@needs_dali
def test_dali_survives_broken_videos(mixed, tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    for path in mixed.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    (tmp_path / "classes.json").write_bytes((mixed.parent / "classes.json").read_bytes())
    index = ShardIndex.open(root)
    vp9, vp8 = index.row(1), index.row(6)
    assert (vp9.codec, vp8.codec) == ("vp9", "vp8")
    overwrite(root / vp9.shard, vp9.offset, b"garbage " * (vp9.size // 8))
    # Inside the frames: packets can be counted, and the decoder fails.
    overwrite(root / vp8.shard, vp8.offset + vp8.size // 3, b"\xff" * (vp8.size // 3))
    options = {"decoder": "dali", "max_error_rate": 0.5}
    with ClipLoader(root, config(**options)) as loader:
        found = list(loader)
        keys = {skip.key for skip in loader.skipped}
    assert [len(batch) for batch in found] == [4, 4, 4]
    assert vp9.key in keys
    assert all_same(batches(root, cache_mib=0, **options), found)


@needs_dali
def test_a_sample_that_dali_refuses_goes_to_pyav(mixed, monkeypatch):
    decode = dali.DaliGraph.decode

    def refuse(graph, videos, indices):
        if any(video[:4] == b"RIFF" for video in videos):  # Motion JPEG in AVI
            raise dali.PipelineError("no")
        return decode(graph, videos, indices)

    expected = batches(mixed, train=False, decoder="dali")
    monkeypatch.setattr(dali.DaliGraph, "decode", refuse)
    with ClipLoader(mixed, config(train=False, decoder="dali")) as loader:
        found = list(loader)
        assert not loader.skipped
    index = ShardIndex.open(mixed)
    for got, exact in zip(found, expected, strict=True):
        assert got.key == exact.key
        for i, key in enumerate(got.key):
            jpeg = index.row(int(key[4:])).codec == "mjpeg"
            assert torch.equal(got.video[i], exact.video[i]) != jpeg


class PretendGpu(dali.DaliGraph):
    """Takes the path of a GPU, with DALI's CPU operators in the place of NVDEC."""

    dark = b"RIFF"  # Motion JPEG comes back black

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.gpu = True

    def decode_augment(self, videos, indices, windows):
        clips = self.augment(self.decode(videos, indices), windows).clone()
        for number, video in enumerate(videos):
            clips[number] *= video[:4] != self.dark
        return clips

    def _run(self, kind, inputs):
        self.gpu = False
        try:
            return super()._run(kind, inputs)
        finally:
            self.gpu = True

    def _tensor(self, result):
        return torch.from_dlpack(result.as_tensor())


@needs_dali
def test_the_path_of_a_gpu(mixed, monkeypatch):
    """Which clips go to NVDEC, and what happens to those that it fails on or blackens."""
    monkeypatch.setattr("stmeta.data.batcher.DaliGraph", PretendGpu)
    monkeypatch.setattr(dali, "GPU_CODECS", {"vp9": (48, 16), "mjpeg": (48, 16), "h264": (48, 16)})
    plain = batches(mixed, decoder="pyav", train=False)
    with ClipLoader(mixed, config(decoder="dali", train=False)) as loader:
        found = list(loader)
        refused = {loader.index.row(i).codec for i in loader._batcher._engine.refused}
        assert not loader.skipped
    assert refused == {"h264"}  # a pipeline on a CPU cannot decode it: an error, and then PyAV
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key
        torch.testing.assert_close(got.pts_seconds, exact.pts_seconds)
        assert ((got.video.float() - exact.video.float()) * luma).sum(2).abs().mean() < 3


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("decoder", ["dali", "pyav"])
def test_gpu(mixed, decoder):
    found = batches(mixed, device="cuda", decoder=decoder)
    assert all(batch.video.is_cuda and batch.label.is_cuda for batch in found)
    assert all_same(batches(mixed, device="cuda", decoder=decoder, threads=1), found)
    plain = batches(mixed, decoder="pyav")
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key
        assert (got.video.cpu().float() - exact.video.float()).abs().mean() < 8


def test_the_shards_are_plain_tars(split):
    with tarfile.open(min(split.glob("*.tar"))) as tar:
        assert tar.getnames()[0] == "clip0.mp4"


@pytest.mark.parametrize(("stride", "aligned"), [(4, True), (8, True), (2, False)])
def test_clips_start_where_shards_made_for_their_stride_allow(tmp_path, stride, aligned):
    samples = (sample(i, frames=60) for i in range(6))
    write_shards(samples, tmp_path / "train", classes=["a", "b", "c"])
    (tmp_path / "ingest.json").write_text('{"options": {"stride": 4}}')
    config = LoaderConfig(batch_size=3, frames=4, stride=stride, size=24, device="cpu")
    with ClipLoader(tmp_path / "train", config) as loader:
        starts = [int(i) for _ in range(4) for batch in loader for i in batch.frame_index[:, 0]]
    assert all(start % 4 == 0 for start in starts) == aligned
