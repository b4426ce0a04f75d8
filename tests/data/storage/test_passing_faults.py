"""Errors of the machine are tried again or stop what is done; no video is blamed for them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import time
from pathlib import Path

import av.error
import numpy as np
import pytest

from stmeta._errors import DataError
from stmeta._util import machine_errors
from stmeta.data.ingest import job
from stmeta.data.ingest.encode import EncodeOptions, encode_frames
from stmeta.data.ingest.sharding import ingest
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, ShardIndex, build_index, write_shards
from stmeta.data.storage.disk_cache import DiskCache
from stmeta.data.verify.verifier import verify

PASSING = ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "EFBIG", "ENOSPC", "EDQUOT")


@pytest.fixture(scope="module")
def video():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    return encode_frames(pixels, 25, gop=4)


@pytest.fixture
def split(video, tmp_path):
    samples = [EncodedSample(key=f"c{i}", video=video, extension="mp4", label=0) for i in range(6)]
    write_shards(samples, tmp_path / "set" / "train")
    build_index(tmp_path / "set" / "train")
    return tmp_path / "set" / "train"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(machine_errors, "_WAITS", (0.01, 0.02, 0.1, 0.5))


@contextlib.contextmanager
def no_descriptors():
    """The limit is the first number that is free, so that nothing more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def loading(split: Path, **options) -> ClipLoader:
    same = {"batch_size": 3, "frames": 4, "size": 16, "cache_mib": 0, "train": False, "threads": 1}
    return ClipLoader(split, LoaderConfig(**{**same, **options}))


def test_a_loader_goes_on_once_descriptors_are_free(split):
    with loading(split, train=True, prefetch=0) as loader:
        next(iter(loader))
        with no_descriptors():
            future = loader.submit(loader.sampler.batch(3, 0))
            time.sleep(0.05)  # meanwhile every open fails
        assert len(future.result()) == 3
        assert not loader.skipped


def test_a_loader_stops_where_descriptors_stay_short(split):
    with loading(split, prefetch=0) as loader:
        loader.load([loader.sampler.clip(0)])
        with (
            no_descriptors(),
            pytest.raises(machine_errors.StorageError, match="Too many open files"),
        ):
            loader.load([loader.sampler.clip(1)])
        assert not loader.skipped
        assert sum(len(batch) for batch in loader) == 6


@pytest.mark.parametrize("name", PASSING)
def test_no_sample_is_blamed(split, monkeypatch, name):
    number = getattr(errno, name)
    monkeypatch.setattr(machine_errors, "_has_memory", lambda: False)
    opened = os.open

    def failing(path, *arguments, **options):
        if str(path).endswith(".tar"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(machine_errors, "_WAITS", ())
    with loading(split) as loader, monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(machine_errors.StorageError, match="none is marked as damaged"):
            next(iter(loader))
        assert not loader.skipped


def test_index_and_verify_blame_no_shard(split, monkeypatch):
    before = ShardIndex.open(split)
    with no_descriptors(), pytest.raises((DataError, OSError)):
        build_index(split, full=True)
    assert len(ShardIndex.open(split)) == len(before) and not ShardIndex.open(split).bad
    with no_descriptors(), pytest.raises((DataError, OSError)):
        verify([split], level="decode", workers=1)


@pytest.mark.parametrize("name", PASSING)
def test_ingest_blames_no_video_and_goes_on(video, tmp_path, monkeypatch, name):
    videos = tmp_path / "videos"
    for i in range(4):
        (videos / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (videos / "ab"[i % 2] / f"{i}.mp4").write_bytes(video)
    number, real, calls = getattr(errno, name), job.probe, 0
    monkeypatch.setattr(machine_errors, "_has_memory", lambda: False)
    monkeypatch.setattr(machine_errors, "_WAITS", ())

    def failing(path):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    def go(**options):
        encode = EncodeOptions(short_side=None, fps=None, gop=4)
        out = tmp_path / "out"
        return ingest(videos, out, encode=encode, copy=True, shard_mib=0.001, workers=1, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job, "probe", failing)
        with pytest.raises(DataError, match="--resume"):
            go()
    report = go(resume=True)
    assert not report.bad
    assert sum(part["samples"] for part in report.splits.values()) == 4


def test_a_fault_that_passes_is_tried_again(tmp_path):
    left = [errno.EMFILE, errno.EIO, errno.ESTALE]

    def read():
        if left:
            raise OSError(left.pop(), "for now")
        return 7

    assert machine_errors.patiently(read) == 7


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.EINVAL])
def test_errors_of_a_file_are_its_own(number):
    machine_errors.raise_if_machines(OSError(number, "x"))

    def read():
        raise OSError(number, "x")

    with pytest.raises(OSError, match="x") as caught:
        machine_errors.patiently(read)
    assert not isinstance(caught.value, DataError)


def test_ffmpegs_words_are_looked_into(tmp_path, monkeypatch):
    """It says "I/O error" and "out of memory" of damaged files, too."""
    whole = tmp_path / "whole"
    whole.write_bytes(b"x" * 10)
    said = av.error.FFmpegError(errno.EIO, "Input/output error")
    machine_errors.raise_if_machines(said)
    machine_errors.raise_if_machines(said, whole)
    machine_errors.raise_if_machines(av.error.FFmpegError(errno.ENOMEM, "Cannot allocate memory"))
    machine_errors.raise_if_machines(MemoryError())
    with pytest.raises(machine_errors.StorageError):
        machine_errors.raise_if_machines(av.error.FFmpegError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(machine_errors, "_has_memory", lambda: False)
    with pytest.raises(machine_errors.StorageError):
        machine_errors.raise_if_machines(MemoryError())
    monkeypatch.setattr(machine_errors, "_reads", lambda path: False)
    with pytest.raises(machine_errors.StorageError):
        machine_errors.raise_if_machines(said, whole)


def test_the_disk_cache_keeps_nothing_for_now_and_goes_on(tmp_path):
    cache = DiskCache(tmp_path / "cache", 1000)
    cache.write("ab12", b"0123456789")
    with no_descriptors():
        cache.write("ab13", b"0123456789")
        assert cache.read("ab12", 10, 0, 10) is None
    assert cache.writable
    cache.write("ab13", b"0123456789")
    assert cache.read("ab13", 10, 2, 4) == b"23"


def within(seconds: float, function, *arguments):
    """What a call returns; a failure where it takes longer."""
    found: list = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no end after {seconds} seconds"
    return found[0]


def test_a_cache_entry_that_is_no_file(tmp_path):
    cache = DiskCache(tmp_path / "cache", 10_000)
    cache.write("ab00", b"0123456789")
    victim = tmp_path / "victim"
    victim.write_bytes(b"0123456789")
    folder = tmp_path / "cache" / "ab"
    os.mkfifo(folder / "ab01")
    (folder / "ab02").symlink_to(victim)
    (folder / "ab03").mkdir()
    for name in ("ab01", "ab02", "ab03"):
        assert within(5, cache.read, name, 10, 0, 10) is None
        within(5, lambda n=name: [cache.write(n, b"abcdefghij")])
    assert cache.read("ab01", 10, 0, 3) == cache.read("ab02", 10, 0, 3) == b"abc"
    assert victim.read_bytes() == b"0123456789"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_counter_of_the_cache_that_is_no_file(tmp_path, kind):
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"precious")
    if kind == "link":
        (folder / "used").symlink_to(victim)
    else:
        os.mkfifo(folder / "used")
    cache = DiskCache(folder, 1000)
    within(5, lambda: [cache.write("ab00", b"0123456789")])
    assert victim.read_bytes() == b"precious"


def test_a_shard_that_is_a_pipe(split):
    shard = next(split.glob("*.tar"))
    index = ShardIndex.open(split)
    shard.unlink()
    os.mkfifo(shard)

    def refused() -> str:
        with pytest.raises(DataError) as caught:
            index.read(0)
        return str(caught.value)

    assert "is no file" in within(5, refused)
