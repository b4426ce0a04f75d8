"""Counts, order and times of frames are those of a decode from the start, whatever packets say."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch

from stmeta._util.timers import Timers
from stmeta.data.decode import pyav
from stmeta.data.decode.sample import SampleDecoder, VideoPlace
from stmeta.data.ingest.transcode import check_decodes, transcode
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.verify.video import decode_fault
from stmeta.data.video.evidence import reorder_depth
from stmeta.data.video.first_bytes import packet_parser
from stmeta.data.video.h264_sps import frames_only
from stmeta.data.video.probe import VideoInfo, probe
from tests.data._loading import needs_dali
from tests.data._shards import pack
from tests.data._streams import copy, encode, pictures, plain, without_reorder_depth, x264, x265


def uneven(number: int) -> int:
    """Milliseconds; a gap grows from frame to frame."""
    return 40 * number + 2 * number * number


def hide(packet: bytes) -> bytes:
    """Clear the bit of VP8 that says that a frame is shown, of some frames that are not keys."""
    hidden = packet[0] & 1 and len(packet) % 3 == 0
    return bytes([packet[0] & ~16]) + packet[1:] if hidden else packet


def ts_from(first: int) -> bytes:
    return copy(x264("mpegts", "bframes=2:keyint=15:min-keyint=15", 60), "mpegts", first)


def cut_within(container: str) -> bytes:
    """Begins 10 frames before what is to be seen, at the key frame that it needs."""
    return copy(x264("mp4", "bframes=2:keyint=40:min-keyint=40", 80), container, 40, 50)


def open_start(container: str, video: bytes) -> bytes:
    """From the second key frame on; frames shown before it need the first."""
    return copy(video, container, -1)


OPEN = "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0:b-adapt=0"
KINDS = {
    # Order.
    "no reorder depth": lambda: without_reorder_depth(x264("mp4", "bframes=3:keyint=12", 40)),
    "b-frames in avi": lambda: x264("avi", "bframes=3"),
    "no b-frames in avi": lambda: x264("avi", "bframes=0:keyint=12"),
    # Times.
    "uneven mp4": lambda: encode("libx264", "mp4", times=uneven, bf="2"),
    "uneven avi": lambda: encode("mjpeg", "avi", times=uneven, pixels="yuvj420p"),
    "uneven ts": lambda: encode("libx264", "mpegts", times=uneven, bf="2"),
    "uneven flv": lambda: encode("flv", "flv", times=uneven),
    "uneven asf": lambda: encode("wmv2", "asf", times=uneven),
    "uneven 3gp": lambda: encode("h263", "3gp", times=uneven, size=(144, 176)),
    "uneven mpeg4": lambda: encode("mpeg4", "mp4", times=uneven, bf="2"),
    "uneven gif": lambda: encode(
        "gif", "gif", times=lambda i: 10 * (uneven(i) // 10), pixels="rgb8"
    ),
    # Counts.
    "vp8 hidden": lambda: copy(encode("libvpx", "webm"), "webm", change=hide),
    "m4v": lambda: encode("mpeg4", "m4v", bf="2"),
    "raw hevc": lambda: x265("hevc", "bframes=3"),
    "raw h264": lambda: x264("h264", "bframes=3"),
    "interlaced": lambda: x264("mp4", "interlaced=1:bframes=2"),
    "interlaced ts": lambda: x264("mpegts", "interlaced=1:bframes=2"),
    "ts without its key frame": lambda: ts_from(3),
    "mpeg1": lambda: encode("mpeg1video", "mpeg", bf="2"),
    # Beginnings.
    "cut within a group": lambda: cut_within("mp4"),
    "open group h264": lambda: open_start("matroska", x264("mp4", OPEN, 40)),
    "before an open group": lambda: copy(x265("mp4", OPEN, 40), "matroska", 3),
    "open group h264 ts": lambda: open_start("mpegts", x264("mpegts", OPEN, 40)),
    "open group hevc": lambda: open_start("matroska", x265("mp4", OPEN, 40)),
    "open group hevc ts": lambda: open_start("mpegts", x265("mpegts", OPEN, 40)),
    # Times that start again.
    "two ts": lambda: x264("mpegts", "bframes=2", 20) + x264("mpegts", "bframes=2:qp=9", 25),
}


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return {}


@pytest.fixture(params=KINDS)
def kind(request, made) -> tuple[str, bytes]:
    name = request.param
    if name not in made:
        made[name] = KINDS[name]()
    return name, made[name]


def seconds_of(name: str, frames: list) -> np.ndarray:
    """Times after the first frame, as the makers of these files meant them."""
    steps = np.arange(len(frames))
    if name.startswith("uneven gif"):
        return np.array([10 * (uneven(i) // 10) for i in steps]) / 1000
    if name.startswith("uneven"):
        return np.array([uneven(i) for i in steps]) / 1000
    if "hidden" in name:
        pts = np.array([frame.pts for frame in frames])
        return (pts - pts[0]) / 1000
    return steps / 25


def serve(tmp_path, video: bytes, info: VideoInfo) -> tuple[SampleDecoder, VideoPlace]:
    (tmp_path / "a.tar").write_bytes(bytes(512) + video)
    place = VideoPlace(
        "a.tar", 512, len(video), info.frames, info.rotation, info.fps, info.variable_rate
    )
    return SampleDecoder(tmp_path), place


def test_probe_says_what_a_decode_shows(kind):
    name, video = kind
    frames, info = plain(video), probe(video)
    assert info.frames == len(frames) > 15
    seconds = seconds_of(name, frames)
    tolerance = max(2e-3, 0.26 / info.fps)  # where the rate counts as constant
    if not info.variable_rate:
        np.testing.assert_allclose(np.arange(info.frames) / info.fps, seconds, atol=tolerance)
    assert info.variable_rate == name.startswith("uneven") or "hidden" in name
    assert info.duration_seconds == pytest.approx(seconds[-1] + np.diff(seconds)[-1], abs=0.2)
    assert info.breaks == (name == "two ts")
    check_decodes(video, info)
    assert decode_fault(video, info) == ""


def test_clips_are_those_frames_at_those_times(kind, tmp_path):
    name, video = kind
    frames = plain(video)
    exact, seconds = pictures(frames), seconds_of(name, frames)
    source, place = serve(tmp_path, video, probe(video))
    random, count = np.random.default_rng(0), len(frames)
    clips = [np.arange(count), np.array([count - 1]), np.array([0, count // 2])]
    clips += [np.unique(random.integers(0, count, 5)) for _ in range(6)]
    times = source.seconds(0, place, Timers())
    np.testing.assert_allclose(times, seconds, atol=1e-2 / 2)
    for indices in clips:
        clip = source.decode(0, place, indices, Timers())
        np.testing.assert_array_equal(clip.video, exact[indices])
        np.testing.assert_allclose(clip.pts_seconds, times[indices], atol=1e-9)


def test_a_decoder_that_starts_late_does_not_lose_frames(made):
    """QuickTime and many phones write no reorder depth; it is known from the file's times."""
    video = KINDS["no reorder depth"]()
    packets = pyav.read_packets(video)
    assert packets is not None and packets.delay > 0 and packets.key.sum() > 1
    exact = pictures(plain(video))
    for first in range(20, 30):  # behind a key frame in the middle
        indices = np.arange(first, first + 8)
        clip = pyav.decode(video, indices, packets=packets)
        np.testing.assert_array_equal(clip.video, exact[indices])


def test_the_reorder_depth_is_the_number_of_packets_that_come_before_earlier_frames():
    random = np.random.default_rng(0)
    for _ in range(50):
        pts = random.permutation(9)
        plainly = max(int((pts[:place] > pts[place]).sum()) for place in range(9))
        assert reorder_depth(pts) == plainly


def test_vp9_packets_tell_what_they_show():
    look = packet_parser("vp9", None)
    key, hidden, inter, again = b"\x82", b"\x84", b"\x86", b"\x88"  # profile 0
    assert look(key) == look(b"\xb1\x00")  # profile 3 has one bit more
    assert (look(key).frames, look(key).random_access) == (1, True)
    assert [look(packet).frames for packet in (hidden, inter, again)] == [0, 1, 1]
    assert not any(look(packet).random_access for packet in (hidden, inter, again))

    def superframe(*frames: bytes) -> bytes:
        mark = bytes([0xC0 | len(frames) - 1])
        return b"".join(frames) + mark + bytes(len(frame) for frame in frames) + mark

    both = look(superframe(hidden + b"ab", inter + b"c"))
    assert (both.frames, both.ambiguous) == (1, False)
    assert look(superframe(inter, again)).ambiguous
    assert not look(b"\x01").random_access  # damaged


def test_h264_packets_tell_where_decoding_can_start():
    look = packet_parser("h264", None)
    idr, intra, b, message = b"\0\0\1\x65\x88", b"\0\0\1\x41\x88", b"\0\0\1\x01\x9e", b"\0\0\1\x06"
    assert look(idr).random_access and look(idr).closed_gop
    assert not look(intra).random_access  # frames behind it may need frames before it
    at_once, later = message + b"\x06\x01\xc4\x80", message + b"\x06\x01\x24\x80"
    assert look(at_once + intra).random_access and not look(at_once + intra).closed_gop
    assert not look(later + intra).random_access
    assert look(
        message + b"\x01\x01\x34\x06\x01\xc4\x80" + intra
    ).random_access  # the second message
    assert look(b).reordered and not look(idr).reordered
    assert look(message + b"\x05\x01\x00\x80").ambiguous  # no picture


@pytest.mark.parametrize("profile", ["baseline", "high", "high444"])
def test_headers_of_h264_tell_whether_pictures_may_be_fields(profile):
    pixels = {"high444": "yuv444p"}.get(profile, "yuv420p")
    for params in ("", "interlaced=1:") if profile != "baseline" else ("",):
        for container in ("mp4", "h264"):
            options = {"x264-params": f"{params}cqm=jvt" if "444" not in profile else params}
            if profile == "baseline":
                options = {"profile": "baseline"}
            video = encode("libx264", container, 2, pixels=pixels, **options)
            with av.open(io.BytesIO(video)) as file:
                extradata = file.streams.video[0].codec_context.extradata
            assert frames_only(extradata) == (not params)
    assert extradata is not None
    assert frames_only(None) is None and frames_only(extradata[:9]) is None


def test_whole_frames_of_interlaced_video_are_decoded_from_the_key_frame_before():
    packets = pyav.read_packets(KINDS["interlaced"]())
    assert packets is not None and packets.frames == 30


@pytest.mark.parametrize("name", ["two ts", "raw h264", "uneven ts", "ts without its key frame"])
def test_a_part_begins_at_its_time(made, name):
    """Of files that cannot be entered at a time, or bear no right ones."""
    video = made.get(name) or KINDS[name]()
    frames = plain(video)
    exact, seconds = pictures(frames).astype(float), seconds_of(name, frames)
    info = probe(video)
    part = transcode(
        video, short_side=None, fps=info.fps, crf=3, start_seconds=float(seconds[-6]), frames=3
    )
    for number, picture in enumerate(pictures(plain(part))):
        moment = seconds[-6] + number / info.fps
        shown = int(np.abs(exact - picture).mean((1, 2, 3)).argmin())
        assert abs(seconds[shown] - moment) <= np.abs(seconds - moment).min() + 0.01


@needs_dali
def test_dali_gets_no_file_whose_packets_are_not_its_frames(made, tmp_path):
    """It counts packets, so that frames behind a hidden one would be others."""
    hidden, whole = KINDS["vp8 hidden"](), encode("libvpx", "webm")
    members = [(f"{key}.webm", video) for key, video in (("hidden", hidden), ("whole", whole))]
    pack(tmp_path / "train" / "000000.tar", [*members, ("hidden.cls", b"0"), ("whole.cls", b"0")])
    config = {"batch_size": 2, "frames": 12, "size": 48, "train": False, "device": "cpu"}
    with ClipLoader(tmp_path / "train", LoaderConfig(decoder="dali", **config)) as loader:
        (batch,) = loader
        assert {loader.index.row(i).key for i in loader.collator._engine.refused} == {"hidden"}
    with ClipLoader(tmp_path / "train", LoaderConfig(decoder="pyav", **config)) as loader:
        (plainly,) = loader
    assert batch.key == plainly.key and torch.equal(batch.frame_index, plainly.frame_index)
    # The colours of DALI are other ones, so that the same bits are PyAV's.
    assert [torch.equal(batch.video[i], plainly.video[i]) for i in range(2)] == [True, False]
    torch.testing.assert_close(batch.pts_seconds, plainly.pts_seconds)
