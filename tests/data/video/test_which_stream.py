"""Which stream of a file is the film, how large it may be, and why a file is not read."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from stmeta._errors import DataError
from stmeta.data.decode import pyav
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.ingest.transcode import transcode
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from stmeta.data.verify.inspect import find_sample
from stmeta.data.verify.pictures import pictures
from stmeta.data.video import limits
from stmeta.data.video.probe import probe
from tests.data._loading import batches, config
from tests.data._videos import decode, moving_bars

FILM, COVER = Disposition.default, Disposition.attached_pic
SIZES = {"libx264": (64, 48), "mjpeg": (96, 96)}


def film(streams: list[tuple[str, int, int]], container: str = "mp4", **options: str) -> bytes:
    """Streams of (encoder, disposition, grey level); covers have one frame, films ten."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options=options) as output:
            made = []
            for encoder, disposition, level in streams:
                stream = output.add_stream(encoder, rate=25)
                stream.width, stream.height = SIZES.get(encoder, (64, 48))
                stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
                stream.disposition = disposition
                made.append((stream, 1 if disposition == COVER else 10, level))
            for stream, count, level in made:
                picture = np.full((stream.height, stream.width, 3), level, np.uint8)
                for number in range(count):
                    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    output.mux(stream.encode(frame))
                output.mux(stream.encode(None))
        return file.read()


def split_of(videos: list[bytes], folder: Path) -> Path:
    """A split of these videos, keys "0", "1", ..."""
    samples = [
        EncodedSample(key=str(i), video=video, extension="mp4", label=0)
        for i, video in enumerate(videos)
    ]
    write_shards(samples, folder / "train", classes=["a"])
    return folder / "train"


def levels_of(video: bytes, tmp_path) -> set[int]:
    """Grey levels that come by each way of reading a video."""
    packets, every = pyav.read_packets(video), np.arange(10)
    split = split_of([video], tmp_path)
    clips = [
        pyav.decode(video, every).video,
        pyav.decode(video, every, packets=packets).video,
        decode(transcode(video, fps=None)),
        *(batch.video.numpy() for batch in batches(split, train=False)),
        *(picture.image for picture in pictures(find_sample(split, "0"), 3)[0]),
    ]
    assert len(clips[2]) == 10
    return {round(float(clip.mean())) for clip in clips}


def test_a_cover_is_not_the_film(tmp_path):
    video = film([("mjpeg", COVER, 200), ("libx264", FILM, 100)])
    info = probe(video)
    assert (info.codec, info.frames, info.width) == ("h264", 10, 64) and not info.remark
    assert levels_of(video, tmp_path) == {100}


def test_the_stream_that_is_marked_as_the_default_one(tmp_path):
    video = film([("libx264", Disposition(0), 50), ("libx264", FILM, 150)])
    assert "it has 2 video streams" in probe(video).remark
    assert levels_of(video, tmp_path) == {150}


def test_a_file_that_has_only_a_cover():
    with pytest.raises(DataError, match="no video stream but a cover picture"):
        probe(film([("mjpeg", COVER, 200)]))


def test_a_cover_in_front(shared_data):
    """A real file: the muxer here puts covers last."""
    path = shared_data / "faults" / "video" / "cover_first.mp4"
    if not path.exists():
        pytest.skip("faults are not here")
    info = probe(path)
    assert (info.codec, info.frames, info.width) == ("h264", 40, 160)
    video = path.read_bytes()
    assert pyav.decode(video, np.arange(40)).video.shape == (40, 120, 160, 3)


def test_pictures_that_are_too_large(make_video, monkeypatch, tmp_path):
    video = make_video(height=64, width=128)
    packets = pyav.read_packets(video)
    index = ShardIndex.open(split_of([video], tmp_path))
    monkeypatch.setenv(limits.PICTURE, "0.008")
    rule = r"128×64 is 0\.00819 megapixels, at most 0\.008 .*raise \$STMETA_PICTURE_MEGAPIXELS"
    for read in (
        lambda: probe(video),
        lambda: pyav.decode(video, np.arange(2)),
        lambda: transcode(video),
    ):
        with pytest.raises(DataError, match=rule):
            read()
    with pytest.raises(DataError):  # known packets: the decoder itself stops
        pyav.decode(video, np.arange(2), packets=packets)
    with ClipLoader(index, config(train=False, max_error_rate=1, processes=1)) as loader:
        assert list(loader) == [] and len(loader.skipped) == 1
    monkeypatch.setenv(limits.PICTURE, "0.01")
    assert probe(video).frames == 20
    monkeypatch.setenv(limits.PICTURE, "many")
    with pytest.raises(ValueError, match="number of megapixels above 0, got 'many'"):
        probe(video)


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_a_stream_whose_pictures_grow(codec, monkeypatch):
    """The first frames are small, so the file opens."""
    small, large = (
        encode_frames(moving_bars(0, 8, side, side), 25, codec=codec, gop=8) for side in (64, 256)
    )
    packets = pyav.read_packets(small)
    grown = pyav.read_packets(large)
    assert packets is not None and grown is not None
    monkeypatch.setenv(limits.PICTURE, "0.01")
    with pytest.raises(DataError):
        pyav.decode(large, np.arange(2), packets=grown)
    assert pyav.decode(small, np.arange(2), packets=packets).video.shape == (2, 64, 64, 3)


@pytest.mark.parametrize("processes", [0, 1])
def test_clips_that_are_too_large(make_video, monkeypatch, tmp_path, processes):
    videos = [make_video(height=side, width=side) for side in (48, 64)]
    split = split_of(videos, tmp_path)
    monkeypatch.setenv(limits.CLIP, "0.02")  # 8 frames of 48 x 48, and not of 64 x 64
    settings = config(train=False, processes=processes, max_error_rate=1)
    with ClipLoader(split, settings) as loader:
        assert [key for batch in loader for key in batch.key] == ["0"]
        (skip,) = loader.skipped
    assert "8 frames of 64×64 are 0.0328 megapixels, at most 0.02" in skip.reason
    assert "--short-side" in skip.reason and limits.CLIP in skip.reason
    with pytest.raises(DataError, match="20 frames of 64×64"):  # what the index says is not asked
        pyav.decode(videos[1], np.arange(20))


@pytest.mark.parametrize("options", [{"train": False}, {"stride": 2, "repeats": 2}])
def test_large_clips_are_decoded_in_parts(make_video, monkeypatch, tmp_path, options):
    split = split_of([make_video(i) for i in range(4)], tmp_path)
    settings = {"processes": 0, "cache_mib": 0, "saturation": 0.5, **options}
    whole = batches(split, **settings)
    held: list[int] = []
    real = pyav.decode_yuv

    def counted(video, indices, **more):
        held.append(len(indices))
        return real(video, indices, **more)

    monkeypatch.setattr(pyav, "decode_yuv", counted)
    monkeypatch.setattr(limits, "_PART", 3 * 48 * 64)
    parts = batches(split, **settings)
    assert max(held) == 3
    assert len(parts) == len(whole)
    for first, second in zip(parts, whole, strict=True):
        assert first.key == second.key and bool((first.video == second.video).all())
        assert bool((first.pts_seconds == second.pts_seconds).all())


KEY = {"encryption_key": "00" * 16, "encryption_kid": "11" * 16}


def test_an_encrypted_film():
    video = film([("libx264", FILM, 99)], encryption_scheme="cenc-aes-ctr", **KEY)
    for read in (probe, pyav.read_packets):
        with pytest.raises(DataError, match="encrypted: it can only be read with a key"):
            read(video)


def test_mpeg1_without_a_container():
    assert probe(film([("mpeg1video", FILM, 99)], "mpeg1video")).codec == "mpeg1video"


def gif() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="gif") as output:
        stream = output.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for number, picture in enumerate(moving_bars(0, 4, 48, 64)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return out.getvalue()


def test_reasons_are_about_the_video(make_video):
    """No decoder's bare error code is taken for a missing permission, nor for a missing index."""
    bad = bytearray(gif())
    bad[bad.index(b",\0\0\0\0\x40\0") + 10] = 0  # the code size of the first picture
    with pytest.raises(DataError, match=r"first frame cannot be decoded .*without a reason"):
        probe(bytes(bad))
    whole = make_video()
    bad = bytearray(whole)
    bad[bad.index(b"mdat") + 4 :] = bytes(len(bad) - bad.index(b"mdat") - 4)
    with pytest.raises(DataError, match=r"frame can(not)? be decoded"):
        probe(bytes(bad))
    with pytest.raises(DataError, match="no usable index"):
        probe(whole.replace(b"moov", b"moox", 1))
