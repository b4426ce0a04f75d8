"""Repeated sampling: several clips of one decode."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from stmeta._errors import DataError
from stmeta.data.augment.crop import crop_resize
from stmeta.data.decode import pyav
from stmeta.data.decode.choice import DecoderChoice
from stmeta.data.decode.dali import DaliGraph
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.loading.sampler import ClipRequest, ClipSampler
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from tests.data._loading import all_same, copied, needs_dali, overwrite

COUNT = 9


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_video) -> Path:
    """Nine videos, H.264 and VP9 in turn, of 30 frames; the third is shorter than a clip."""
    root = tmp_path_factory.mktemp("repeats") / "train"
    kinds = [("h264", "mp4"), ("vp9", "webm")]
    samples = []
    for i in range(COUNT):
        codec, extension = kinds[i % 2]
        video = make_video(i, frames=5 if i == 2 else 30, codec=codec)
        samples.append(EncodedSample(key=f"v{i}", video=video, extension=extension, label=i % 2))
    write_shards(samples, root, classes=["a", "b"])
    return root


def make(**options) -> ClipLoader:
    root, rank, world_size = (options.pop(n, d) for n, d in (("root", 0), ("rank", 0), ("of", 1)))
    options = {"batch_size": 6, "frames": 8, "size": 32, "device": "cpu", "repeats": 3, **options}
    return ClipLoader(root, LoaderConfig(**options), rank=rank, world_size=world_size)


def batches(root: Path, count: int, **options) -> list:
    with make(root=root, **options) as loader:
        return [batch for _ in range(count) for batch in loader]


def test_a_plan_puts_the_repeats_of_a_sample_next_to_each_other():
    frames = np.full(20, 40)
    plan = ClipSampler(frames, clip_frames=8, batch_size=12, repeats=4)
    assert len(plan) == 20 * 4 // 12
    requests = [r for i in range(len(plan)) for r in plan.batch(5, i)]
    for i in range(0, len(requests), 4):
        group = requests[i : i + 4]
        assert [r.repeat for r in group] == [0, 1, 2, 3]
        assert len({(r.sample, r.start) for r in group}) == 1
        assert len({r.augment_seed for r in group}) == 4
    assert len({r.sample for r in requests}) == 18  # whole batches only: 72 clips of 80
    once = ClipSampler(frames, clip_frames=8, batch_size=3)
    assert [r for i in range(6) for r in once.batch(5, i)] == requests[::4]


def test_repeats_are_shared_by_ranks_and_go_round_a_small_set():
    frames = np.full(20, 40)
    alone = ClipSampler(frames, clip_frames=8, batch_size=12, repeats=3)
    ranks = [
        ClipSampler(frames, clip_frames=8, batch_size=6, repeats=3, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert {len(plan) for plan in ranks} == {len(alone)} == {5}
    for i in range(5):
        assert alone.batch(1, i) == [r for plan in ranks for r in plan.batch(1, i)]
    small = ClipSampler(np.full(2, 40), clip_frames=8, batch_size=12, repeats=2)
    assert len(small) == 1
    batch = small.batch(0, 0)
    assert Counter(r.sample for r in batch) == {0: 6, 1: 6}
    assert len({r.augment_seed for r in batch}) == 12


def test_substitutes_of_repeats_are_repeats():
    plan = ClipSampler(np.full(9, 40), clip_frames=8, batch_size=6, repeats=3, labels=np.zeros(9))
    group = plan.batch(0, 0)[:3]
    for attempt in range(4):
        found = [plan.substitute(request, attempt) for request in group]
        assert len({(r.sample, r.start, r.seed) for r in found}) == 1
        assert [r.repeat for r in found] == [0, 1, 2]


def test_an_evaluation_repeats_nothing():
    plan = ClipSampler(np.full(9, 40), clip_frames=8, batch_size=4, repeats=3, train=False)
    assert [r.sample for i in range(len(plan)) for r in plan.batch(0, i)] == list(range(9))


@pytest.mark.parametrize("processes", [0, 2])
def test_the_same_frames_decoded_once_and_cut_anew(split, monkeypatch, processes):
    decoded = []
    for name in ("decode", "decode_yuv"):
        fresh = getattr(pyav, name)
        count = lambda *a, fresh=fresh, **k: decoded.append(1) or fresh(*a, **k)  # noqa: E731
        monkeypatch.setattr(pyav, name, count)
    with make(root=split, cache_mib=0, processes=processes, prefetch=0) as loader:
        assert len(loader) == COUNT * 3 // 6
        batch = next(iter(loader))
        requests = loader.sampler.batch(0, 0)
        misses = loader.stats()["cache_misses"]
        for i, request in enumerate(requests):
            clip = loader.collator.reader.clip(request.sample, batch.frame_index[i].numpy())
            out = np.empty((8, 32, 32, 3), np.uint8)
            crop_resize(
                clip.video, loader.config.window(request.augment_seed, *clip.video.shape[1:3]), out
            )
            np.testing.assert_array_equal(batch.video[i].permute(0, 2, 3, 1).numpy(), out)
    assert misses == 2
    assert len(decoded) == (0 if processes else 2 + 6)
    assert len(set(batch.key)) == 2
    for first in (0, 3):
        assert (batch.frame_index[first] == batch.frame_index[first : first + 3]).all()
        for a, b in pairwise([*range(first, first + 3), first]):
            assert not torch.equal(batch.video[a], batch.video[b])


def test_the_first_repeat_is_what_a_loader_without_repeats_shows(split):
    plain = batches(split, 1, repeats=1, batch_size=2)
    found = batches(split, 1)
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a.video[::3], b.video) and a.key[::3] == b.key


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3, "cache_mib": 0}])
def test_pixels_depend_on_the_plan_alone(split, options):
    assert all_same(batches(split, 2, **options), batches(split, 2))


def test_resume_is_exact_also_with_another_number_of_ranks(split):
    expected = batches(split, 2)
    with make(root=split) as loader:
        for _, _batch in zip(range(3), loader, strict=False):
            pass
        state = loader.state_dict()
    assert state["position"] == 3
    parts = []
    for rank in range(2):
        with make(root=split, batch_size=3, rank=rank, of=2) as loader:
            loader.load_state_dict(state)
            parts.append([*loader, *loader])
    joined = [torch.cat([a.video, b.video]) for a, b in zip(*parts, strict=True)]
    assert len(joined) == len(expected) - 3
    for a, b in zip(joined, expected[3:], strict=True):
        assert torch.equal(a, b.video)
    with (
        make(root=split, repeats=2) as other,
        pytest.raises(ValueError, match="from repeats = 3, this loader has 2"),
    ):
        other.load_state_dict(state)
    old = {name: value for name, value in state.items() if name != "repeats"}
    with make(root=split) as other, pytest.raises(ValueError, match="from repeats = 1"):
        other.load_state_dict(old)


def broken_copy(root: Path, target: Path, key: str) -> Path:
    """A copy of a split in which one video is garbage that its index does not know."""
    copy = copied(root, target)
    index = ShardIndex.open(copy)
    (row,) = (index.row(i) for i in range(len(index)) if index.row(i).key == key)
    overwrite(copy / row.shard, row.offset, b"garbage " * (row.size // 8))
    return copy


@pytest.mark.parametrize("decoder", ["pyav", pytest.param("dali", marks=needs_dali)])
def test_a_broken_sample_is_replaced_in_all_its_repeats(split, tmp_path, decoder):
    root = broken_copy(split, tmp_path, "v3")  # VP9, which DALI decodes
    options = {"max_error_rate": 0.5, "decoder": decoder}
    with make(root=root, **options) as loader:
        found = list(loader)
        assert [skip.key for skip in loader.skipped] == ["v3"]
    keys = [key for batch in found for key in batch.key]
    assert len(keys) == 24 and "v3" not in keys
    assert all(len(set(keys[i : i + 3])) == 1 for i in range(0, 24, 3))
    assert all_same(batches(root, 1, cache_mib=0, **options), found)
    with make(root=root, max_error_rate=0.01) as loader, pytest.raises(DataError, match="v3"):
        list(loader)


@needs_dali
def test_dali_decodes_once_too(split, monkeypatch):
    counts = []
    decode = DaliGraph.decode
    monkeypatch.setattr(
        DaliGraph, "decode", lambda g, v, i: counts.append(len(v)) or decode(g, v, i)
    )
    plain = batches(split, 1, decoder="pyav")
    found = batches(split, 1, decoder="dali", cache_mib=0)
    assert all_same(batches(split, 1, decoder="dali"), found)
    assert sum(counts[: len(found)]) < 24 / 3
    for a, b in zip(found, plain, strict=True):
        assert a.key == b.key and torch.equal(a.frame_index, b.frame_index)
        assert (a.video.float() - b.video.float()).abs().mean() < 8


def test_on_a_gpu_repeats_are_decoded_on_the_cpu():
    assert "decoded once" in LoaderConfig(repeats=2).host_only(gpu=True)
    assert LoaderConfig(repeats=2).host_only(gpu=False) == ""
    assert LoaderConfig(repeats=2, train=False).host_only(gpu=True) == ""


def test_auto_says_why_it_does_not_take_dali(split, monkeypatch, caplog):
    monkeypatch.setattr(LoaderConfig, "host_only", lambda *_, **__: "repeats = 3: decoded once")
    monkeypatch.setattr(
        "stmeta.data.loading.loader.choose_decoder",
        lambda *_, **__: DecoderChoice("dali", "cpu", "x"),
    )
    with caplog.at_level(logging.INFO, "stmeta.data"), make(root=split):
        pass
    assert "torch resizes (repeats = 3: decoded once)" in caplog.text
    with pytest.raises(ValueError, match="decoder='dali' does not serve repeats = 3"):
        make(root=split, decoder="dali")


def test_any_list_of_clips_can_be_loaded(split):
    with make(root=split) as loader:
        a, b = ClipRequest(0, 3, 11), ClipRequest(1, 0, 12)
        batch = loader.load([a, a._replace(repeat=1), b, a])
        assert batch.key == ["v0", "v0", "v1", "v0"]
        assert torch.equal(batch.video[0], batch.video[3])
        assert not torch.equal(batch.video[0], batch.video[1])
        sweep = [key for part in loader.sweep() for key in part.key]
        assert sweep == [f"v{i}" for i in range(COUNT)]


def test_errors(split):
    with pytest.raises(ValueError, match=r"must be a multiple of repeats = 4.* got 6"):
        ClipLoader(split, LoaderConfig(batch_size=6, repeats=4))
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        LoaderConfig(repeats=0)
    with pytest.raises(ValueError, match="must be a multiple of repeats = 4, got 6"):
        ClipSampler(np.full(9, 40), clip_frames=8, batch_size=6, repeats=4)
    assert LoaderConfig(batch_size=6, repeats=4, train=False).repeats == 4
