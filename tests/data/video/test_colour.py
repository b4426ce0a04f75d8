"""Colours of every kind of source: as a plain decode gives them, whichever way they come."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from stmeta._errors import DataError
from stmeta.data.decode import pyav, yuv
from stmeta.data.ingest.transcode import transcode
from stmeta.data.video.colour import known_matrix
from stmeta.data.video.probe import probe
from tests.data._videos import decode

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
LIMITED, FULL = 1, 2
BT709, UNKNOWN, BT601, BT2020 = 1, 2, 6, 9


def ramps(height: int = 128, width: int = 144) -> np.ndarray:
    """uint8 [H, W, 3]: brightness from left to right, colour from top to bottom, both smooth."""
    bright = np.linspace(20, 235, width)[None, :, None]
    colour = np.linspace(-18, 18, height)[:, None, None] * np.array([1, 0.2, -1])
    return (bright + colour).round().astype(np.uint8)


def film(
    encoder: str, pixels: str, space: int, levels: int, container: str = "matroska", **options: str
) -> bytes:
    """Three frames of `ramps`, tagged as told."""
    picture = av.VideoFrame.from_ndarray(ramps(), "rgb24")
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container) as output:
            stream = output.add_stream(encoder, rate=25, options=options)
            stream.height, stream.width = ramps().shape[:2]
            stream.pix_fmt = pixels
            stream.codec_context.color_range, stream.codec_context.colorspace = levels, space
            for number in range(3):
                frame = picture.reformat(
                    format=pixels,
                    dst_colorspace={BT709: Colorspace.ITU709, BT2020: Colorspace.BT2020}.get(
                        space, Colorspace.ITU601
                    ),
                    dst_color_range=ColorRange.JPEG if levels == FULL else ColorRange.MPEG,
                    interpolation=EXACT,
                )
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return file.read()


def exact(video: bytes) -> np.ndarray:
    """uint8 [T, H, W, 3], by FFmpeg's conversion without its short cuts."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack(
            [
                frame.to_ndarray(format="rgb24", interpolation=EXACT)
                for frame in container.decode(video=0)
            ]
        )


def error(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean of the distance, and of the difference."""
    difference = first.astype(int) - second
    return float(np.abs(difference).mean()), float(difference.mean())


KINDS = [
    ("ffv1", "yuv420p", BT601, LIMITED),
    ("ffv1", "yuv420p", BT601, FULL),
    ("ffv1", "yuv420p", BT709, LIMITED),
    ("ffv1", "yuv420p", BT709, FULL),
    ("ffv1", "yuv420p", BT2020, LIMITED),
    ("ffv1", "yuv422p", UNKNOWN, LIMITED),
    ("ffv1", "yuv444p", BT709, FULL),
    ("ffv1", "yuva420p", UNKNOWN, LIMITED),
    ("ffv1", "yuv420p10le", BT709, LIMITED),
    ("ffv1", "yuv422p10le", BT601, FULL),
    ("ffv1", "gray", UNKNOWN, FULL),
    ("ffv1", "bgra", UNKNOWN, FULL),
    ("mjpeg", "yuvj420p", BT601, FULL),
    ("mjpeg", "yuvj422p", BT601, FULL),
    ("libx264", "yuvj420p", BT709, FULL),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@pytest.mark.parametrize("codec", ["h264", "vp8", "vp9", "mjpeg"])
def test_a_transcoded_film_has_the_colours_of_its_source(kind, codec):
    source = film(*kind)
    crf = None if codec == "mjpeg" else 4
    before, after = exact(source), exact(transcode(source, fps=None, codec=codec, crf=crf))
    distance, shift = error(after, before)
    # One level is what fewer bits, fewer levels of VP8 and the encoder may cost; none of it is
    # brighter or darker as a whole.
    assert distance < 1.6 and abs(shift) < 0.6, (distance, shift)


@pytest.mark.parametrize("level", [0, 31, 95, 223, 255])
@pytest.mark.parametrize("codec", ["h264", "vp8", "mjpeg"])
def test_grey_levels_stay(level, codec):
    out = io.BytesIO()
    with av.open(out, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        frame = av.VideoFrame(96, 64, "yuvj420p")
        for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    stored = transcode(out.getvalue(), fps=None, codec=codec, crf=None if codec == "mjpeg" else 4)
    found = decode(stored).astype(int)
    assert np.abs(found - level).max() <= (1 if codec == "vp8" else 0)


def test_what_is_stored_says_what_it_is():
    """For readers that do not guess as FFmpeg does."""
    for source, levels in (
        (film("mjpeg", "yuvj420p", BT601, FULL), FULL),
        (film("libx264", "yuv420p", BT709, LIMITED), LIMITED),
    ):
        with av.open(io.BytesIO(transcode(source, fps=None))) as container:
            frame = next(container.decode(video=0))
        assert (frame.color_range, frame.colorspace) == (levels, BT601)


# What x264 writes into the stream itself; the container still gets the encoder's tags.
UNMARKED = {"x264-params": "colormatrix=undef:fullrange=off"}


@pytest.mark.parametrize("levels", [LIMITED, FULL])
@pytest.mark.parametrize("space", [BT709, BT2020])
def test_tags_that_only_the_container_has(space, levels):
    video = film("libx264", "yuv420p", space, levels, **UNMARKED)
    expected, indices = decode(video), np.arange(3)
    packets = pyav.read_packets(video)
    assert packets is not None
    np.testing.assert_array_equal(pyav.decode(video, indices, packets=packets).video, expected)
    found = pyav.decode_yuv(video, indices, packets=packets, accept=yuv.packable)
    assert isinstance(found, pyav.YuvFrames)
    assert (found.video.kind.colorspace, found.video.kind.color_range) == (space, levels)
    codec = av.CodecContext.create("h264", "r")
    codec.extradata = packets.extradata
    packet = av.Packet(video[packets.offset[0] : packets.offset[0] + packets.size[0]])
    alone = [*codec.decode(packet), *codec.decode(None)][0]
    assert (alone.colorspace, alone.color_range) != (space, levels)  # the stream does not tell


def test_tags_of_a_real_film(shared_data):
    path = shared_data / "faults" / "androidx-media" / "sample_18byte_nclx_colr.mp4"
    if not path.exists():
        pytest.skip("faults are not here")
    video, indices = path.read_bytes(), np.arange(8)
    packets = pyav.read_packets(video)
    assert packets is not None
    expected = decode(video)[:8]
    np.testing.assert_array_equal(pyav.decode(video, indices, packets=packets).video, expected)


def test_a_full_range_webcam(shared_data):
    path = shared_data / "faults" / "video" / "full_range_webcam.avi"
    if not path.exists():
        pytest.skip("faults are not here")
    video = path.read_bytes()
    assert probe(video).codec == "mjpeg"
    distance, shift = error(decode(transcode(video, short_side=None, fps=None)), decode(video))
    assert distance < 0.5 and abs(shift) < 0.1


@pytest.mark.parametrize("space", range(18))
@pytest.mark.parametrize("format", ["yuv420p", "yuv444p10le", "gray", "rgb24", "pal8"])
def test_a_matrix_is_converted_or_refused_by_name(space, format):
    frame = av.VideoFrame(64, 48, format)
    for plane in frame.planes:
        plane.update(bytes([90]) * plane.buffer_size)
    frame.colorspace, frame.color_range = space, 1
    out = np.empty((48, 64, 3), np.uint8)
    if known_matrix(frame):
        yuv.write_rgb(frame, out, 0)
        assert np.ptp(out, (0, 1)).max() == 0
    else:
        assert space in (3, 8) or space > 9
        with pytest.raises(DataError, match=f"colour matrix is number {space} of ITU-T H.273"):
            yuv.write_rgb(frame, out, 0)


def test_a_film_of_a_matrix_that_is_not_converted_is_a_bad_sample():
    with pytest.raises(DataError, match="colour matrix is number 8"):
        probe(film("libx264", "yuv420p", 8, LIMITED))
