from __future__ import annotations

import contextlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stmeta._errors import BackendUnavailableError, DataError
from stmeta.data.augment.crop import Window, centre_window, crop_resize, plain_window, random_window
from stmeta.data.decode import dali, pyav
from stmeta.data.decode.choice import choose_decoder, dali_problem
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.video.display import AS_STORED, Display
from stmeta.data.video.probe import probe

EDGE = Path(__file__).resolve().parents[4] / "shared" / "data" / "edge"
FRAMES = 36
needs_dali = pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")


def moving(height: int = 64, width: int = 80, frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """A textured frame that drifts by two pixels a step, uint8 [T, H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(20, 235, (8, 10, 3), dtype=np.uint8)
    texture = coarse.repeat(-(-height // 8), 0).repeat(-(-width // 10), 1)[:height, :width]
    return np.stack([np.roll(texture, 2 * t, axis=1) for t in range(frames)])


def encode_plainly(video: np.ndarray, codec: str, container: str, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = video.shape[1:3]
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def reference(video: bytes) -> np.ndarray:
    """Every frame, by PyAV's plainest loop."""
    with av.open(io.BytesIO(video), metadata_errors="replace") as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def open_gop() -> bytes:
    x264 = "keyint=8:open-gop=1:bframes=3:b-adapt=0:b-pyramid=none:scenecut=0:threads=1"
    return encode_plainly(moving(), "libx264", "mp4", **{"x264-params": x264})


VIDEOS = {
    "h264": lambda: encode_frames(moving(), 25, gop=8),
    "h264, open groups": open_gop,
    "h264 in mkv": lambda: encode_plainly(moving(), "libx264", "matroska", g="12", bf="2"),
    "hevc": lambda: encode_frames(moving(144, 144), 25, codec="hevc", gop=8),
    "vp8, hidden frames": lambda: encode_plainly(
        moving(), "libvpx", "webm", **{"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}
    ),
    "vp9": lambda: encode_frames(moving(), 25, codec="vp9", gop=8),
    "av1": lambda: encode_frames(moving(64, 64, 20), 25, codec="av1", gop=8),
    "mjpeg": lambda: encode_frames(moving(), 25, codec="mjpeg"),
    "mpeg4 in avi": lambda: encode_plainly(moving(), "mpeg4", "avi", g="8"),
}


@pytest.fixture(scope="module")
def videos() -> dict[str, bytes]:
    return {name: make() for name, make in VIDEOS.items()}


def some_clips(frames: int, count: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    clips = [np.arange(frames), np.array([frames - 1]), np.array([0, frames - 1])]
    for _ in range(count):
        stride = int(random.choice([1, 1, 2, 3, 7]))
        length = min(6, (frames - 1) // stride)
        clips.append(random.integers(frames - (length - 1) * stride) + np.arange(length) * stride)
    return clips


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_equal_those_of_a_plain_decode(videos, name):
    video = videos[name]
    exact = reference(video)
    packets = pyav.read_packets(video)
    assert (packets is None) == (name == "mpeg4 in avi")
    assert packets is None or packets.frames == len(exact) == probe(video).frames
    for indices in some_clips(len(exact)):
        begin, end = packets.byte_range(indices) if packets else (0, len(video))
        frames = pyav.decode(video[begin:end], indices, packets=packets, first_byte=begin, fps=25)
        np.testing.assert_array_equal(frames.video, exact[indices])
        np.testing.assert_allclose(frames.pts_seconds, indices / 25, atol=1.1e-3)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs Linux")
def test_no_encoder_leaves_this_process_a_priority():
    for codec in ("h264", "av1"):
        encode_frames(moving(64, 64, 4), 25, codec=codec)
        for name in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
                assert os.sched_getscheduler(int(name)) == os.SCHED_OTHER, codec


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs Linux")
def test_a_priority_from_before_is_kept():
    def encode() -> tuple[int, int]:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(3))
        encode_frames(moving(64, 64, 2), 25, codec="av1")
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority

    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(encode).result() == (os.SCHED_FIFO, 3)
        except PermissionError:
            pytest.skip("this user may not set a priority")


def test_a_clip_needs_only_its_part_of_the_file(videos):
    packets = pyav.read_packets(videos["h264"])
    begin, end = packets.byte_range(np.arange(20, 24))
    assert packets.runs(np.arange(20, 24)) == [(16, 23)]
    assert end - begin < len(videos["h264"]) / 2
    assert len(packets.runs(np.array([0, 35]))) == 2  # nothing between is decoded


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(rotation):
    video = encode_frames(moving(), 25, rotation=rotation)
    assert probe(video).rotation == rotation
    packets = pyav.read_packets(video)
    frames = pyav.decode(video, np.arange(4), packets=packets, display=Display(rotation)).video
    stored = reference(video)[:4]
    clockwise = {90: stored.transpose(0, 2, 1, 3)[:, :, ::-1], 180: stored[:, ::-1, ::-1]}
    clockwise[270] = clockwise[90][:, ::-1, ::-1]
    np.testing.assert_array_equal(frames, clockwise[rotation])


@pytest.mark.parametrize("name", ["h264", "vp9", "mjpeg", "mpeg4 in avi"])
def test_damaged_files_raise_and_never_return_black_frames(videos, name):
    video, frames = videos[name], len(reference(videos[name]))
    for share in (0.0, 0.01, 0.4, 0.9):
        broken = video[: int(len(video) * share)]
        with pytest.raises(DataError):
            pyav.decode(broken, np.arange(frames), packets=pyav.read_packets(broken))
    with pytest.raises(DataError, match="cannot be decoded"):
        pyav.read_packets(b"no video at all " * 100)


def test_random_damage_raises_only_data_errors(videos):
    random = np.random.default_rng(0)
    for name in ("h264", "vp9", "mjpeg", "vp8, hidden frames"):
        for _ in range(15):
            video = np.frombuffer(videos[name], np.uint8).copy()
            places = random.integers(0, len(video), random.integers(1, 60))
            video[places] = random.integers(0, 256, len(places))
            try:
                packets = pyav.read_packets(video.tobytes())
                count = min(20, packets.frames) if packets else 20
                frames = pyav.decode(video.tobytes(), np.arange(count), packets=packets)
            except DataError:
                continue
            assert len(frames.video) == count


def test_frames_past_the_end_are_an_error(videos):
    packets = pyav.read_packets(videos["h264"])
    with pytest.raises(DataError, match="frame 36 is past the end, 36 frames"):
        pyav.decode(videos["h264"], np.array([36]), packets=packets)
    with pytest.raises(DataError, match="only 1 of the 2 requested frames"):
        pyav.decode(videos["mpeg4 in avi"], np.array([3, 36]))


def test_many_threads(videos):
    names = ["h264", "vp9", "mjpeg", "h264 in mkv"] * 6
    exact = {name: reference(videos[name])[10:20] for name in set(names)}

    def work(name: str) -> bool:
        packets = pyav.read_packets(videos[name])
        frames = pyav.decode(videos[name], np.arange(10, 20), packets=packets)
        return bool((frames.video == exact[name]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, names))


@pytest.mark.skipif(not EDGE.is_dir(), reason="needs the shared videos")
@pytest.mark.parametrize(
    "name", ["decord/tests/test_data/video_90.mov", "moviepy/transparent.webm"]
)
def test_videos_from_elsewhere(name):
    video = (EDGE / name).read_bytes()
    info, exact = probe(video), reference(video)[:40]
    indices = np.arange(len(exact))[::2]
    frames = pyav.decode(video, indices, packets=pyav.read_packets(video), display=info.display)
    upright = np.rot90(exact[indices], k=-info.rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(frames.video, upright)


def test_windows_are_a_function_of_the_seed_and_fit():
    options = {"scale": (0.3, 1.0), "ratio": (0.75, 4 / 3), "hflip": 0.5}
    windows = [random_window(seed, 72, 96, **options) for seed in range(500)]
    assert windows == [random_window(seed, 72, 96, **options) for seed in range(500)]
    areas = []
    for top, left, height, width, _ in windows:
        assert 0 <= top <= 72 - height and 0 <= left <= 96 - width
        assert 0.7 <= width / height <= 1.4
        areas.append(height * width / 72 / 96)
    assert 0.28 < min(areas) < 0.35 and max(areas) > 0.8
    assert 190 < sum(w.flip for w in windows) < 310
    assert random_window(1, 10, 500, **options).height == 10  # no window fits: the centre


def test_whole_frames_and_plain_windows():
    whole = random_window(3, 64, 64, scale=(1, 1), ratio=(1, 1), hflip=0)
    assert whole == Window(0, 0, 64, 64, False)
    assert centre_window(64, 80) == Window(0, 8, 64, 64, False)
    assert centre_window(64, 80, size=48) == Window(8, 16, 48, 48, False)
    plain = {plain_window(seed, 66, 64, size=64, hflip=0)[:4] for seed in range(50)}
    assert plain == {(top, 0, 64, 64) for top in range(3)}
    with pytest.raises(DataError, match="64×64 window does not fit into 80×48"):
        plain_window(0, 48, 80, size=64, hflip=0)


def test_crop_without_resize_copies_pixels():
    video, out = moving(), np.empty((FRAMES, 32, 32, 3), np.uint8)
    crop_resize(video, Window(5, 7, 32, 32, False), out)
    np.testing.assert_array_equal(out, video[:, 5:37, 7:39])
    crop_resize(video, Window(5, 7, 32, 32, True), out)
    np.testing.assert_array_equal(out, video[:, 5:37, 7:39][:, :, ::-1])


@pytest.mark.parametrize("window", [(0, 0, 64, 80), (10, 3, 41, 50), (30, 30, 20, 24)])
@pytest.mark.parametrize("flip", [False, True])
def test_resize_matches_float64(window, flip):
    video, out = moving(), np.empty((FRAMES, 32, 32, 3), np.uint8)
    top, left, height, width = window
    crop_resize(video, Window(*window, flip), out)
    part = torch.from_numpy(video[:, top : top + height, left : left + width].copy())
    exact = F.interpolate(
        part.permute(0, 3, 1, 2).double(), (32, 32), mode="bilinear", antialias=True
    )
    exact = (exact.flip(-1) if flip else exact).permute(0, 2, 3, 1).numpy()
    assert np.abs(out - exact).max() <= 1.5  # it rounds between its two passes


def test_auto_on_a_cpu_is_pyav():
    assert choose_decoder("auto", "cpu", fits=False)[:2] == ("pyav", "cpu")
    assert choose_decoder("pyav", "cpu", fits=False).reason == "requested"


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="torch finds no GPU"):
        choose_decoder("auto", "cuda", fits=False)


def test_a_missing_dali(monkeypatch):
    monkeypatch.setattr("stmeta.data.decode.choice.dali_problem", lambda: "it cannot be imported")
    with pytest.raises(BackendUnavailableError, match=r"it cannot be imported; pip install"):
        choose_decoder("dali", "cpu", fits=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_decoder("auto", "cuda", fits=False) == ("pyav", "cuda", "it cannot be imported")


def test_dali_on_a_gpu_unless_all_is_cached(monkeypatch):
    monkeypatch.setattr("stmeta.data.decode.choice.dali_problem", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_decoder("auto", "auto", fits=False)[:2] == ("dali", "cuda")
    assert choose_decoder("auto", "cuda:1", fits=True)[:2] == ("pyav", "cuda:1")


def test_what_dali_decodes():
    assert dali.decodes("vp9", 64, 64, AS_STORED, gpu=False)
    assert not dali.decodes("h264", 320, 240, AS_STORED, gpu=False)
    assert dali.decodes("h264", 64, 64, AS_STORED, gpu=True)
    assert not dali.decodes("vp9", 64, 64, AS_STORED, gpu=True)  # smaller than the hardware takes
    assert not dali.decodes("vp9", 640, 480, Display(90), gpu=False)  # it would lie on its side
    assert not dali.decodes("vp9", 640, 480, Display(mirror=True), gpu=False)


def test_black_frames_are_found():
    clips = torch.ones(3, 4, 2, 2, 3, dtype=torch.uint8)
    clips[1, 2] = 0
    clips[2, 0, 0] = 0
    assert dali.black(clips) == [1]


@needs_dali
def test_dali_augments_like_torch():
    graph = dali.DaliGraph(batch_size=4, frames=6, size=32, threads=1)
    clips = [moving(48 + 8 * i, 90 - 6 * i, 6, seed=i) for i in range(3)]
    windows = [Window(3, 5, 40, 44, True), Window(0, 0, 32, 32, False), Window(9, 2, 50, 30, False)]
    got = graph.augment(clips, windows)
    assert got.shape == (3, 6, 32, 32, 3) and got.dtype == torch.uint8
    for clip, window, result in zip(clips, windows, got.numpy(), strict=True):
        out = np.empty((6, 32, 32, 3), np.uint8)
        crop_resize(clip, window, out)
        difference = np.abs(out.astype(int) - result)  # its filter comes from a table
        assert difference.max() <= 8 and difference.mean() < 0.7
    np.testing.assert_array_equal(got[1].numpy(), clips[1][:, :32, :32])
    kept = got.clone()
    for _ in range(4):  # the buffer is not used again while the tensor lives
        graph.augment([255 - clip for clip in clips], windows)
    assert torch.equal(got, kept)
    graph.close()


@needs_dali
def test_dali_decodes_mixed_codecs_and_survives_garbage(videos):
    graph = dali.DaliGraph(batch_size=4, frames=6, size=32, threads=1)
    files = [videos["vp9"], videos["mjpeg"], videos["vp8, hidden frames"]]
    indices = [np.arange(FRAMES), np.array([3, 4, 5]), np.array([8, 9])]
    got = graph.decode(files, indices)
    for file, wanted, frames in zip(files, indices, got, strict=True):
        # Both use FFmpeg's decoders, but interpolate colour differently: compare brightness.
        luma = np.array([0.299, 0.587, 0.114])
        assert np.abs(frames @ luma - reference(file)[wanted] @ luma).mean() < 3
    with pytest.raises(dali.PipelineError, match="Failed to create video decoder"):
        graph.decode([files[0], b"no video"], [np.arange(2)] * 2)
    np.testing.assert_array_equal(graph.decode(files[:1], indices[:1])[0], got[0])
    past = graph.decode(files[:1], [np.array([0, FRAMES])])[0]
    assert past[0].any() and not past[1].any()  # why frames are counted beforehand
    graph.close()


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dali_on_a_gpu(videos):
    graph = dali.DaliGraph(batch_size=4, frames=6, size=32, threads=2, device="cuda")
    window = Window(8, 8, 40, 48, True)
    clip = reference(videos["h264"])[10:16]
    out = np.empty((6, 32, 32, 3), np.uint8)
    crop_resize(clip, window, out)
    decoded = graph.decode_augment([videos["h264"]] * 2, [np.arange(10, 16)] * 2, [window] * 2)
    assert decoded.is_cuda and decoded.shape == (2, 6, 32, 32, 3)
    assert np.abs(decoded[0].cpu().numpy().astype(int) - out).mean() < 8
    resized = graph.augment([clip], [window])
    assert np.abs(resized[0].cpu().numpy().astype(int) - out).max() <= 8
    graph.close()
