"""A loader that decodes with DALI, and on a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from stmeta.data.decode import dali
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.writer import ShardIndex
from tests.data._loading import all_same, batches, config, copied, mixed, needs_dali, overwrite

__all__ = ["mixed"]  # a fixture


@needs_dali
def test_dali_serves_mixed_codecs(mixed):
    plain = batches(mixed, decoder="pyav", hflip=1)
    found = batches(mixed, decoder="dali", hflip=1)
    assert all_same(batches(mixed, decoder="dali", hflip=1, cache_mib=0, threads=1), found)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key and torch.equal(got.frame_index, exact.frame_index)
        torch.testing.assert_close(got.pts_seconds, exact.pts_seconds)
        assert got.video.permute(0, 1, 3, 4, 2).is_contiguous()
        error = ((got.video.float() - exact.video.float()) * luma).sum(2).abs()
        assert error.mean() < 3


@needs_dali
def test_dali_survives_broken_videos(mixed, tmp_path):
    root = copied(mixed, tmp_path)
    index = ShardIndex.open(root)
    vp9, vp8 = index.row(1), index.row(6)
    assert (vp9.codec, vp8.codec) == ("vp9", "vp8")
    overwrite(root / vp9.shard, vp9.offset, b"garbage " * (vp9.size // 8))
    # Inside the frames: packets can be counted, and the decoder fails.
    overwrite(root / vp8.shard, vp8.offset + vp8.size // 3, b"\xff" * (vp8.size // 3))
    options = {"decoder": "dali", "max_error_rate": 0.5}
    with ClipLoader(root, config(**options)) as loader:
        found = list(loader)
        keys = {skip.key for skip in loader.skipped}
    assert [len(batch) for batch in found] == [4, 4, 4]
    assert vp9.key in keys
    assert all_same(batches(root, cache_mib=0, **options), found)


@needs_dali
def test_a_sample_that_dali_refuses_goes_to_pyav(mixed, monkeypatch):
    decode = dali.DaliGraph.decode

    def refuse(graph, videos, indices):
        if any(video[:4] == b"RIFF" for video in videos):  # Motion JPEG in AVI
            raise dali.PipelineError("no")
        return decode(graph, videos, indices)

    expected = batches(mixed, train=False, decoder="dali")
    monkeypatch.setattr(dali.DaliGraph, "decode", refuse)
    with ClipLoader(mixed, config(train=False, decoder="dali")) as loader:
        found = list(loader)
        assert not loader.skipped
    index = ShardIndex.open(mixed)
    for got, exact in zip(found, expected, strict=True):
        assert got.key == exact.key
        for i, key in enumerate(got.key):
            jpeg = index.row(int(key[4:])).codec == "mjpeg"
            assert torch.equal(got.video[i], exact.video[i]) != jpeg


class PretendGpu(dali.DaliGraph):
    """Takes the path of a GPU, with DALI's CPU operators in the place of NVDEC."""

    dark = b"RIFF"  # Motion JPEG comes back black

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.gpu = True

    def decode_augment(self, videos, indices, windows):
        clips = self.augment(self.decode(videos, indices), windows).clone()
        for number, video in enumerate(videos):
            clips[number] *= video[:4] != self.dark
        return clips

    def beside(self):
        return contextlib.nullcontext()  # streams are CUDA's

    def _run(self, kind, inputs):
        self.gpu = False
        try:
            return super()._run(kind, inputs)
        finally:
            self.gpu = True

    def _tensor(self, result):
        return torch.from_dlpack(result.as_tensor())


@needs_dali
def test_the_path_of_a_gpu(mixed, monkeypatch):
    """Which clips go to NVDEC, and what happens to those that it fails on or blackens."""
    monkeypatch.setattr("stmeta.data.loading.collate.DaliGraph", PretendGpu)
    monkeypatch.setattr(dali, "GPU_CODECS", {"vp9": (48, 16), "mjpeg": (48, 16), "h264": (48, 16)})
    plain = batches(mixed, decoder="pyav", train=False)
    with ClipLoader(mixed, config(decoder="dali", train=False)) as loader:
        found = list(loader)
        refused = {loader.index.row(i).codec for i in loader.collator._engine.refused}
        assert not loader.skipped
    assert refused == {"h264"}  # a pipeline on a CPU cannot decode it: an error, and then PyAV
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key
        torch.testing.assert_close(got.pts_seconds, exact.pts_seconds)
        assert ((got.video.float() - exact.video.float()) * luma).sum(2).abs().mean() < 3


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("decoder", ["dali", "pyav"])
def test_gpu(mixed, decoder):
    found = batches(mixed, device="cuda", decoder=decoder)
    assert all(batch.video.is_cuda and batch.label.is_cuda for batch in found)
    assert all_same(batches(mixed, device="cuda", decoder=decoder, threads=1), found)
    plain = batches(mixed, decoder="pyav")
    for got, exact in zip(found, plain, strict=True):
        assert got.key == exact.key
        assert (got.video.cpu().float() - exact.video.float()).abs().mean() < 8
