"""Clips straight from a decoder's planes: the bits of FFmpeg and torch, and known colours."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from stmeta._util.timers import Timers
from stmeta.data.augment.crop import Window, crop_resize
from stmeta.data.decode import pyav, yuv
from stmeta.data.decode.process import ProcessDecoder
from stmeta.data.decode.sample import SampleDecoder, VideoPlace
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from tests.data._streams import pictures, plain, x264

extension = yuv._extension()
needs_extension = pytest.mark.skipif(extension is None, reason="stmeta._C is missing or older")
FULL = 2
# (Kr, Kb) of ITU-R BT.601 and BT.709, by their numbers in ITU-T H.273.
MATRICES = {1: ("0.2126", "0.0722"), 5: ("0.299", "0.114")}
BARS = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)] + [(128, 128, 128)]


def frame_of(y, u, v, *, format="yuv420p", space=2, levels=0) -> av.VideoFrame:
    """A frame of planes, uint8 [H, W] and half of that twice."""
    frame = av.VideoFrame(y.shape[1], y.shape[0], format)
    for plane, values in zip(frame.planes, (y, u, v), strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = space, levels
    return frame


def noise(seed: int, height: int, width: int, **options) -> av.VideoFrame:
    random = np.random.default_rng(seed)
    half = (height // 2, (width + 1) // 2)
    planes = (random.integers(0, 256, size, np.uint8) for size in ((height, width), half, half))
    return frame_of(*planes, **options)


def cut(frames: list[av.VideoFrame], window: Window, size: tuple[int, int]) -> np.ndarray:
    video = yuv.gather(frames)
    assert video is not None
    out = np.full((len(frames), *size, 3), 77, np.uint8)
    video.crop_resize(window, out)
    return out


def cut_rgb(frames: list[av.VideoFrame], window: Window, size: tuple[int, int]) -> np.ndarray:
    rgb = np.empty((len(frames), frames[0].height, frames[0].width, 3), np.uint8)
    for number, frame in enumerate(frames):
        yuv.write_rgb(frame, rgb[number], number)
    out = np.empty((len(frames), *size, 3), np.uint8)
    crop_resize(rgb, window, out)
    return out


@pytest.fixture(params=["plain", "avx2", "avx512"])
def isa(request):
    before = extension.cpu_capability()
    try:
        extension.set_cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    extension.set_cpu_capability(before)


@needs_extension
@pytest.mark.parametrize(
    ("height", "width", "window", "size"),
    [
        (128, 170, Window(11, 37, 101, 133, True), (64, 64)),
        (128, 170, Window(0, 0, 128, 170, False), (64, 64)),
        (128, 170, Window(13, 7, 64, 64, True), (64, 64)),  # cut, not resized
        (72, 97, Window(3, 5, 21, 18, False), (48, 33)),  # enlarged
        (240, 322, Window(1, 1, 239, 321, False), (17, 5)),  # 28 and 128 pixels make one
        (2, 1, Window(1, 0, 1, 1, True), (3, 2)),
    ],
)
def test_the_bits_of_two_steps(isa, height, width, window, size):
    frames = [noise(seed, height, width) for seed in range(3)]
    np.testing.assert_array_equal(cut(frames, window, size), cut_rgb(frames, window, size))


@needs_extension
@pytest.mark.parametrize("format", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("space", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("levels", [0, 1, FULL])
def test_the_bits_of_every_kind(format, space, levels):
    frame = noise(space, 34, 66, format=format, space=space, levels=levels)
    assert yuv.agrees(yuv.kind_of(frame))
    window = Window(1, 3, 31, 60, True)
    np.testing.assert_array_equal(
        cut([frame], window, (24, 24)), cut_rgb([frame], window, (24, 24))
    )


@needs_extension
@pytest.mark.parametrize("space", MATRICES)
@pytest.mark.parametrize("levels", [1, FULL])
def test_known_colours(isa, space, levels):
    """Bars of 16 pixels from the definition of the matrix; resizing keeps what is even."""
    red, blue = (Fraction(share) for share in MATRICES[space])
    y, u, v = (np.empty((32, 16 * len(BARS)), np.uint8) for _ in range(3))
    for number, (r, g, b) in enumerate(BARS):
        bright = red * r + (1 - red - blue) * g + blue * b
        difference = [(b - bright) / (2 * (1 - blue)), (r - bright) / (2 * (1 - red))]
        luma, black = (1, 0) if levels == FULL else (Fraction(219, 255), 16)
        chroma = 1 if levels == FULL else Fraction(224, 255)
        at = slice(16 * number, 16 * number + 16)
        y[:, at] = round(bright * luma + black)
        u[:, at], v[:, at] = (min(255, round(d * chroma + 128)) for d in difference)
    frame = frame_of(y, u[::2, ::2], v[::2, ::2], space=space, levels=levels)
    out = cut([frame], Window(0, 0, *y.shape, False), (16, 8 * len(BARS)))[0]
    for number, colour in enumerate(BARS):
        middle = out[:, 8 * number + 3 : 8 * number + 5].astype(int)
        assert np.abs(middle - colour).max() <= (0 if colour in ((0,) * 3, (255,) * 3) else 3)


@needs_extension
def test_kinds_that_take_two_steps(monkeypatch):
    assert not yuv.agrees(yuv.kind_of(av.VideoFrame(32, 32, "yuv444p")))
    assert not yuv.agrees(yuv.kind_of(av.VideoFrame(32, 32, "yuv420p10le")))
    assert not yuv.agrees(yuv.kind_of(av.VideoFrame(32, 31, "yuv420p")))
    assert yuv.gather([noise(0, 32, 32), noise(0, 32, 34)]) is None
    kind = yuv.kind_of(noise(0, 38, 70))
    yuv._tried.cache_clear()
    with monkeypatch.context() as patch:  # an FFmpeg with other roundings
        patch.setattr(yuv, "_colours", lambda kind: (9539, 13075, 16525, -3209, -6661, 128))
        assert not yuv.agrees(kind)
    yuv._tried.cache_clear()
    assert yuv.agrees(kind)
    monkeypatch.setattr(yuv, "_extension", lambda: None)
    assert not yuv.agrees(kind)


@needs_extension
def test_fields_have_colours_of_their_own():
    video = x264("mp4", "tff=1:bframes=2", 12)
    frames = plain(video)
    assert all(frame.interlaced_frame for frame in frames)
    places, window = np.arange(len(frames)), Window(0, 0, 48, 64, False)
    clip = pyav.decode_yuv(video, places, packets=pyav.read_packets(video))
    out = np.empty((len(frames), 24, 24, 3), np.uint8)
    clip.crop_resize(window, out)
    expected = np.empty_like(out)
    crop_resize(pictures(frames), window, expected)
    assert np.array_equal(out, expected)


@needs_extension
def test_errors():
    video = yuv.gather([noise(0, 32, 32)])
    assert video is not None
    out = np.empty((1, 8, 8, 3), np.uint8)
    for window in (
        Window(0, 1, 32, 32, False),
        Window(-1, 0, 8, 8, False),
        Window(0, 0, 0, 8, True),
    ):
        with pytest.raises(ValueError, match="the window must lie in the frame"):
            video.crop_resize(window, out)
    with pytest.raises(ValueError, match=r"out \[F, h, w, 3\]"):
        video.crop_resize(Window(0, 0, 8, 8, False), out.repeat(2, 0))
    with pytest.raises(TypeError):
        video.crop_resize(Window(0, 0, 8, 8, False), out[:, :, ::2])


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_video) -> ShardIndex:
    root = tmp_path_factory.mktemp("yuv") / "train"
    samples = (
        EncodedSample(key=f"clip{i}", video=make_video(i, frames=24), extension="mp4", label=0)
        for i in range(6)
    )
    write_shards(samples, root, classes=["a"])
    return ShardIndex.open(root)


@pytest.fixture
def place(index) -> VideoPlace:
    row = index.row(2)
    return VideoPlace(row.shard, row.offset, row.size, row.frames, row.rotation, float(row.fps))


@needs_extension
@pytest.mark.parametrize("processes", [0, 2])
def test_a_loader_delivers_the_same_clips_without_the_extension(index, monkeypatch, processes):
    config = LoaderConfig(
        batch_size=3, frames=4, size=24, cache_mib=0, device="cpu", processes=processes
    )

    def clips(expected: type) -> list[np.ndarray]:
        with ClipLoader(index, config) as loader:
            clip = loader.collator.reader.yuv_clip(1, np.array([3, 5, 9, 9]))
            assert isinstance(clip.video, expected) and clip.video.shape[0] == 4
            return [batch.video.numpy().copy() for batch in loader]

    ours = clips(yuv.YuvVideo)
    monkeypatch.setattr(yuv, "_extension", lambda: None)
    np.testing.assert_array_equal(ours, clips(np.ndarray))


@needs_extension
def test_planes_from_a_process(index, place):
    source, indices = ProcessDecoder(index.root, 1), np.array([1, 4, 7])
    try:
        found = source.decode_yuv(2, place, indices, Timers())
        source.decode_yuv(2, place, np.arange(9), Timers())  # must not change what was found
    finally:
        source.close()
    assert isinstance(found, pyav.YuvFrames)
    theirs = SampleDecoder(index.root).decode(2, place, indices, Timers())
    np.testing.assert_array_equal(found.pts_seconds, theirs.pts_seconds)
    out, whole = np.empty_like(theirs.video), Window(0, 0, *theirs.video.shape[1:3], False)
    found.crop_resize(whole, out)
    np.testing.assert_array_equal(out, theirs.video)


def test_turned_frames_are_converted(index, place):
    turned = SampleDecoder(index.root).decode_yuv(
        2, place._replace(rotation=90), np.arange(3), Timers()
    )
    theirs = SampleDecoder(index.root).decode(2, place, np.arange(3), Timers())
    assert isinstance(turned, pyav.Frames)
    np.testing.assert_array_equal(turned.video, np.rot90(theirs.video, -1, (1, 2)))
