"""Processes that are stopped and loaders that were forked: an error or a result, never for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from stmeta._util import watchdog
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, build_index, write_shards


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    video = encode_frames(pixels, 25, gop=4)
    root = tmp_path_factory.mktemp("set") / "train"
    samples = [EncodedSample(key=f"c{i}", video=video, extension="mp4", label=0) for i in range(6)]
    write_shards(samples, root)
    build_index(root)
    return root


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)


def loading(split, **options) -> ClipLoader:
    same = {"batch_size": 3, "frames": 4, "size": 16, "cache_mib": 0, "train": False, "threads": 1}
    return ClipLoader(split, LoaderConfig(**{**same, **options}))


def test_a_decoders_process_that_is_stopped_is_replaced(split):
    with loading(split) as loader:
        exact = loader.load([loader.sampler.clip(i) for i in range(6)])
    with loading(split, processes=1) as loader:
        loader.load([loader.sampler.clip(0)])
        (worker,) = loader.collator._source._workers.values()  # type: ignore[union-attr]
        os.kill(worker.process, signal.SIGSTOP)
        began = time.monotonic()
        found = loader.load([loader.sampler.clip(i) for i in range(6)])
        assert time.monotonic() - began < 60
        assert (found.video == exact.video).all() and not loader.skipped


def test_a_loader_with_a_stopped_process_closes(split, monkeypatch):
    monkeypatch.setattr(watchdog, "PATIENCE", 5.0)
    monkeypatch.setattr("stmeta.data.decode.process._LAST", 0.2)
    loader = loading(split, processes=1)
    loader.load([loader.sampler.clip(0)])
    (worker,) = loader.collator._source._workers.values()  # type: ignore[union-attr]
    os.kill(worker.process, signal.SIGSTOP)
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 30


def test_only_children_are_ended():
    """A number that was a child's may be another program's by now."""
    looked = watchdog.Watch()
    looked._seen = {os.getpid(): 99, 1: 99, 2**22 + 7: 99}
    for process in list(looked._seen):
        looked._look(process)
    assert not looked._seen and not looked.ended


def forked(function) -> str:
    """What a function says in a child that was forked; "" where it does not end."""
    ours, theirs = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            theirs.send(function())
        finally:
            os._exit(0)
    try:
        return ours.recv() if ours.poll(20) else ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("processes", [0, 1])
def test_a_loader_that_was_used_is_not_for_a_fork(split, processes):
    def error(function) -> str:
        try:
            function()
        except ValueError as reason:
            return str(reason)
        return "no error"

    with loading(split, train=True, processes=processes) as loader:
        batches = iter(loader)
        next(batches)
        loader.wait_for_prefetch()
        for use in (lambda: next(batches), lambda: loader.load([loader.sampler.clip(0)])):
            assert "before this process was forked" in forked(lambda use=use: error(use))
        assert forked(lambda: error(loader.close)) == "no error"
        assert len(next(batches)) == 3  # this process's own still works


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_that_was_not_used_is(split):
    with loading(split) as loader:
        assert forked(lambda: str(len(next(iter(loader))))) == "3"
