"""What a loader's batches hold."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import torch

from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.loading.sampler import ClipRequest
from stmeta.data.shards.writer import ShardIndex, write_shards
from tests.data._loading import (
    COUNT,
    all_same,
    batches,
    broken,
    config,
    mixed,
    reference,
    same,
    sample,
    split,
)

__all__ = ["broken", "mixed", "split"]  # fixtures


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


def test_short_videos_hold_their_last_frame(split):
    with ClipLoader(split, config(train=False, frames=9)) as loader:
        batch = loader.load([ClipRequest(7, 0, 0), ClipRequest(0, 3, 0)])
    assert batch.frame_index.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 4], list(range(3, 12))]
    video = batch.video[0]
    assert (video[4:] == video[4]).all() and not torch.equal(video[3], video[4])
    assert batch.key == ["clip7", "clip0"]


def test_load_takes_any_number_of_clips(split):
    with ClipLoader(split, config()) as loader:
        requests = loader.sampler.batch(3, 1) + loader.sampler.batch(0, 0)[:3]
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
