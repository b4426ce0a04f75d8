"""Packets that no other frame needs are found, and leaving them out changes no frame."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from stmeta.data.decode import pyav
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.video.disposable import disposable_test


def test_spare_packets_of_h264_are_its_b_frames(make_video):
    packets = pyav.read_packets(make_video(frames=24))
    assert packets is not None
    assert not packets.disposable[packets.key].any()
    with av.open(io.BytesIO(make_video(frames=24))) as container:
        types = {
            frame.pts: PictureType(frame.pict_type).name for frame in container.decode(video=0)
        }
    kinds = [types[int(pts)] for pts in packets.pts]
    assert all(
        kind == "B"
        for kind, disposable in zip(kinds, packets.disposable, strict=True)
        if disposable
    )
    assert packets.disposable.sum() > 0


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_a_few_frames_are_those_of_all(make_video, codec):
    video = make_video(frames=30, codec=codec)
    packets = pyav.read_packets(video)
    every = pyav.decode(video, np.arange(30), packets=packets).video
    for indices in ([0, 5, 10], [3], [7, 8, 29], list(range(1, 30, 4))):
        some = pyav.decode(video, np.array(indices), packets=packets).video
        np.testing.assert_array_equal(some, every[indices])


def test_start_codes_and_lengths():
    needed, disposable = b"\x65abc", b"\x01abc"
    lengths = disposable_test("h264", b"\x01\x64\x00\x1e\xff")
    assert not lengths(b"\0\0\0\4" + needed) and lengths(b"\0\0\0\4" + disposable)
    assert lengths(b"\0\0\0\2\x06x" + b"\0\0\0\4" + disposable)  # a message before the picture
    codes = disposable_test("h264", b"\0\0\0\1\x67")
    assert not codes(b"\0\0\0\1" + needed) and codes(b"\0\0\1\x09\x10\0\0\1" + disposable)


@pytest.mark.parametrize("packet", [b"", b"\0", b"\0\0\0\0", b"\xff" * 9, b"\0\0\0\1\x06"])
def test_what_does_not_read_as_expected_is_needed(packet):
    for extradata in (b"\x01\x64\x00\x1e\xff", b"\0\0\0\1\x67", None):
        assert not disposable_test("h264", extradata)(packet)
    assert not disposable_test("vp9", b"")(packet)


def test_a_stride_leaves_three_of_four_packets_spare(make_video):
    video = make_video(frames=66, stride=4)
    packets = pyav.read_packets(video)
    every = pyav.decode(video, np.arange(66), packets=packets).video
    needed = packets.display_order[np.arange(0, 64, 4)]
    assert not packets.disposable[needed].any()
    assert packets.disposable.mean() > 0.7
    for start in (0, 4, 20, 1, 7):  # any phase gives the right frames, phase 0 the cheapest
        indices = np.arange(start, 66, 4)
        some = pyav.decode(video, indices, packets=packets).video
        np.testing.assert_array_equal(some, every[indices])


def test_a_stride_must_divide_the_group():
    with pytest.raises(ValueError, match=r"divisor of gop, got stride 3 with h264 and gop 16"):
        EncodeOptions(stride=3)
    with pytest.raises(ValueError, match=r"got stride 4 with vp9"):
        EncodeOptions(stride=4, codec="vp9")
