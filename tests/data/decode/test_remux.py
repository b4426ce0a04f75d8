"""Files of the packets that a clip needs, as decoders of files get them."""

from __future__ import annotations

import numpy as np
import pytest

from stmeta.data.decode import dali, pyav
from stmeta.data.decode.choice import dali_problem
from stmeta.data.decode.remux import drop_disposable, needed, remux_packets
from tests.data._videos import decode, remux

STRIDE = {"stride": 4, "frames": 40}


def stride_clip(first: int) -> np.ndarray:
    return np.arange(first, first + 24, 4)


@pytest.mark.parametrize("first", [0, 8, 12])
def test_spare_packets_are_left_out(make_video, first):
    video = make_video(**STRIDE)
    packets = pyav.read_packets(video)
    assert packets is not None
    file, places = drop_disposable(video, packets, stride_clip(first))
    assert np.array_equal(decode(file)[places], decode(video)[stride_clip(first)])
    assert len(decode(file)) <= 10 and len(file) < len(video)  # six frames, and where they start


def test_frames_that_repeat_and_frames_between(make_video):
    video = make_video(**STRIDE)
    packets = pyav.read_packets(video)
    assert packets is not None
    indices = np.array([3, 3, 8, 17, 32])
    file, places = drop_disposable(video, packets, indices)
    assert file != video and np.array_equal(decode(file)[places], decode(video)[indices])


def test_containers(make_video):
    video = remux(make_video(**STRIDE), "matroska")
    packets = pyav.read_packets(video)
    assert packets is not None and packets.disposable.any()
    file, places = drop_disposable(video, packets, stride_clip(4))
    assert np.array_equal(decode(file)[places], decode(video)[stride_clip(4)])


def test_a_file_that_needs_all_is_left_alone(make_video):
    video = make_video(**STRIDE)
    packets = pyav.read_packets(video)
    assert packets is not None
    indices = np.arange(40)
    file, places = drop_disposable(video, packets, indices)
    assert file is video and places is indices
    vp9 = make_video(codec="vp9")
    packets = pyav.read_packets(vp9)
    assert packets is not None
    assert drop_disposable(vp9, packets, stride_clip(0)[:4])[0] is vp9


@pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")
def test_dali_decodes_a_cut(make_video):
    """VP9, which it decodes without a GPU; part of the file."""
    video, indices = make_video(codec="vp9", frames=40), np.array([9, 11, 23])
    packets = pyav.read_packets(video)
    assert packets is not None
    file, places = remux_packets(video, packets, indices, needed(packets, indices))
    graph = dali.DaliGraph(batch_size=2, frames=3, size=32, threads=1)
    ours, whole = graph.decode([file, video], [places, indices])
    assert len(decode(file)) < 40 and np.array_equal(ours, whole)
    graph.close()
