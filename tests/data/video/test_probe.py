from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest

from stmeta._errors import DataError
from stmeta.data.ingest.encode import CODECS, EncodeOptions, encode_frames
from stmeta.data.ingest.transcode import check_decodes, fits, transcode
from stmeta.data.video.probe import probe
from tests.data._streams import encode
from tests.data._videos import decode, moving_bars, remux


@pytest.mark.parametrize("codec", ["h264", "vp8", "vp9", "mjpeg"])
def test_facts(make_video, codec, tmp_path):
    video = make_video(frames=20, height=128, width=136, fps=12.5, codec=codec)
    info = probe(video)
    assert (info.codec, info.width, info.height, info.frames) == (codec, 136, 128, 20)
    assert info.fps == 12.5 and info.duration_seconds == pytest.approx(1.6, abs=0.05)
    assert info.keyframes == (tuple(range(20)) if codec == "mjpeg" else (0, 8, 16))
    assert not info.variable_rate and info.rotation == 0
    path = tmp_path / "-odd name: 1.bin"  # neither an option nor a protocol
    path.write_bytes(video)
    assert probe(path) == info


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation(make_video, rotation):
    assert probe(make_video(rotation=rotation)).rotation == rotation


def test_variable_rate(make_video):
    video = make_video(codec="vp8", fps=25)
    steady = remux(video, "webm", lambda i: 33 * i + i // 3)  # 33, 33, 34 ms: rounding
    assert not probe(steady).variable_rate
    gaps = remux(video, "webm", lambda i: 40 * i + 400 * (i >= 10))
    info = probe(gaps)
    assert info.variable_rate and info.frames == 20
    assert info.fps == pytest.approx(20 / 1.2, rel=0.03)


def cut(video: bytes, share: float) -> bytes:
    return video[: int(len(video) * share)]


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ("front", "truncated: the data ends after"),
        ("end", "no usable index"),
        ("webm", "truncated: .* bytes are there"),
        ("matroska", "truncated: .* bytes are there"),
        ("avi", "truncated: the data ends"),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_truncated(make_video, container, reason, share):
    video = make_video(frames=40, codec={"webm": "vp8", "avi": "mjpeg"}.get(container, "h264"))
    if container != "front":
        video = remux(video, {"end": "mp4"}.get(container, container))
    assert probe(video).frames == 40
    with pytest.raises(DataError, match=reason):
        probe(cut(video, share))


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not a video " * 500, "not a video"),
        (bytes(5000), "zeros"),
        (np.random.default_rng(0).bytes(20000), "not a video"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(200), "no usable index"),
        (sound(), "not a video"),
    ],
)
def test_no_video(content, reason, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    for video in (content, path):
        with pytest.raises(DataError, match=reason):
            probe(video)


def test_missing(tmp_path):
    with pytest.raises(DataError, match="missing"):
        probe(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8"])
def test_a_playlist_does_not_open_other_files(make_video, tmp_path, text, suffix):
    (tmp_path / "other.mp4").write_bytes(make_video())
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(tmp_path / "other.mp4"))
    for video in (path, path.read_bytes()):
        with pytest.raises(DataError, match="not a video"):
            probe(video)


def test_real_videos(shared_data):
    """Every file of other projects' test suites is described or refused, and never in vain."""
    found = {}
    for path in sorted((shared_data / "edge").rglob("*.*")):
        try:
            info = probe(path)
            check_decodes(path, info)
            found[path.name] = info
        except DataError as error:
            found[path.name] = str(error)
    assert "decoding stopped after 28 of 50" in found["corrupted.mp4"]
    assert "not a video" in found["LICENCE.txt"]
    assert [found[f"video_{angle}.mov"].rotation for angle in (0, 90, 180, 270)] == [
        0,
        90,
        180,
        270,
    ]
    # 49 packets, but one of them is a placeholder; time stamps there are in decoding order.
    assert found["TrumanShow_wave_f_nm_np1_fr_med_26.avi"].frames == 48
    assert sum(isinstance(value, str) for value in found.values()) == 2


def test_encode_is_reproducible_and_close(make_video):
    frames = moving_bars(3, 12, 64, 80)
    for codec in ("h264", "vp8", "mjpeg"):
        video = encode_frames(frames, 12, codec=codec)
        assert video == encode_frames(frames, 12, codec=codec)
        error = np.abs(decode(video).astype(int) - frames).mean()
        assert error < 14, codec  # chroma of hard edges is halved
    assert video.index(b"RIFF") == 0
    mp4 = make_video()
    assert mp4.index(b"moov") < mp4.index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "at least one"),
        (np.zeros((2, 47, 64, 3), np.uint8), "even"),
        (np.zeros((2, 48, 64, 3), np.float32), "uint8"),
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 66, 3), np.uint8)], "48×64"),
    ],
)
def test_encode_refuses(frames, reason):
    with pytest.raises(ValueError, match=reason):
        encode_frames(frames, 12)


def test_options_are_checked():
    with pytest.raises(ValueError, match="codec must be one of h264"):
        EncodeOptions(codec="divx")
    with pytest.raises(ValueError, match="gop must be above 0"):
        EncodeOptions(gop=0)


def test_transcode_size_and_rate(make_video):
    source = make_video(frames=50, height=96, width=128, fps=25)
    info = probe(transcode(source, short_side=64, fps=12.5))
    assert (info.width, info.height, info.frames, info.fps) == (86, 64, 25, 12.5)
    assert info.keyframes == (0, 16)
    same = probe(transcode(source, short_side=None, fps=None))
    assert (same.width, same.height, same.frames, same.fps) == (128, 96, 50, 25)
    tiny = probe(transcode(make_video(height=16, width=32)))  # a GPU reads no smaller H.264
    assert (tiny.width, tiny.height) == (96, 48)


def test_transcode_takes_the_right_frames():
    """Frame i has brightness 4 i; half the rate keeps every second one."""
    levels = np.arange(40, dtype=np.uint8) * 4 + 40
    frames = np.broadcast_to(levels[:, None, None, None], (40, 48, 64, 3))
    out = decode(transcode(encode_frames(frames, 25, crf=5), fps=12.5, crf=5))
    np.testing.assert_allclose(out.mean((1, 2, 3)), levels[::2], atol=2.5)


def test_transcode_resamples_a_variable_rate_by_time():
    levels = np.arange(20, dtype=np.uint8) * 8 + 40
    frames = np.broadcast_to(levels[:, None, None, None], (20, 48, 64, 3))
    # 0.1 s per frame at first, then 0.2 s.
    video = remux(
        encode_frames(frames, 10, codec="vp8", crf=4),
        "webm",
        lambda i: 100 * i + 100 * max(i - 9, 0),
    )
    out = decode(transcode(video, fps=10, crf=5)).mean((1, 2, 3))
    expected = np.concatenate([levels[:10], levels[10:].repeat(2)])
    assert abs(len(out) - len(expected)) <= 1
    late = np.abs(out[:28] - expected[:28])
    assert np.median(late) < 3 and late.max() < 12  # at a tie either neighbour will do


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_transcode_turns_frames_upright(rotation):
    upright = np.zeros((4, 48, 80, 3), np.uint8)
    upright[:, :24, :40] = 220  # bright at the top left
    stored = np.rot90(upright, k=rotation // 90, axes=(1, 2))  # counter-clockwise
    video = encode_frames(stored, 10, rotation=rotation)
    out = decode(transcode(video, fps=10))
    assert out.shape[1:3] == (48, 80)
    assert np.abs(out.astype(int) - upright).mean() < 6
    assert probe(transcode(video, fps=10)).rotation == 0


def test_broken_in_the_middle(make_video):
    video = bytearray(make_video(frames=40, height=96, width=96))
    middle = len(video) // 2
    video[middle : middle + len(video) // 3] = bytes(len(video) // 3)
    with pytest.raises(DataError, match=r"decoding stopped|damaged|truncated"):
        transcode(bytes(video))


def test_fits(make_video):
    options = EncodeOptions(short_side=48, fps=25, gop=8)
    info = probe(make_video())
    assert fits(info, "mp4", options)
    assert not fits(info, "mkv", options)
    assert not fits(info._replace(rotation=90), "mp4", options)
    assert not fits(info._replace(height=50), "mp4", options)
    assert not fits(info, "mp4", EncodeOptions(short_side=48, fps=25, gop=4))
    assert not fits(info, "mp4", EncodeOptions(short_side=48, fps=12.5, gop=8))
    assert set(CODECS) >= {"h264", "vp9"}


def test_one_frame_without_a_length_lasts_as_long_as_others():
    video = encode("libx264", "flv", 12, times=lambda i: 143 * i)
    with av.open(io.BytesIO(video)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    info = probe(video[: places[1]])
    assert info.frames == 1 and info.fps > 1
    assert info.duration_seconds == pytest.approx(1 / info.fps)


def test_a_gif_that_is_cut():
    video = encode("gif", "gif", 12, pixels="rgb8")
    assert probe(video).frames == 12 and probe(video[:-1]).frames == 12  # its end mark is optional
    assert probe(video + bytes(50)).frames == 12
    for end in (len(video) // 3, len(video) // 2, len(video) - 20):
        with pytest.raises(DataError, match="truncated"):
            probe(video[:end])


def test_a_fragmented_mp4_that_is_cut(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(path, "w", options={"movflags": "frag_keyframe+empty_moov"}) as target:
        stream = target.add_stream("libx264", rate=25, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in moving_bars(0, 50, 48, 64):
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode())
    video = path.read_bytes()
    last = video.rindex(b"moof") - 4
    assert probe(video).frames == 50 and probe(video[:last]).frames < 50  # ends with a fragment
    for end in (last + 40, last + 90):
        with pytest.raises(DataError, match="truncated"):
            probe(video[:end])


def test_times_that_cannot_be_right():
    """A wrong time stamp neither stops the others nor fills the disk with one picture."""
    video = encode("libvpx", "matroska", 5, times=lambda i: 40 * i if i < 4 else 2**41)
    with pytest.raises(DataError, match="times cannot be right"):
        probe(video)
    video = encode("libvpx", "matroska", 5, times=lambda i: 40 * i if i < 4 else 2**21)
    assert probe(video).duration_seconds == pytest.approx(2097, abs=1)
    with pytest.raises(DataError, match="would be repeated"):
        transcode(video, fps=120.0)
    slow = transcode(video, fps=0.1, short_side=None)
    assert 205 <= probe(slow).frames <= 420
