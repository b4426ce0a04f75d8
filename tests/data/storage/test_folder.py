"""Shards at an address, without a network: memory://, foreign indexes."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
import torch

from stmeta._errors import BackendUnavailableError, DataError
from stmeta._util.timers import Timers
from stmeta.data.decode.sample import SampleDecoder, VideoPlace
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import ShardIndex
from stmeta.data.storage import http_transport, remote, transport
from stmeta.data.storage.config import StorageConfig
from stmeta.data.storage.folder import StorageError, locate
from tests.data._served import memory, split, storage

__all__ = ["memory", "split"]

ROOT = Path(__file__).parents[3]


def config(where: StorageConfig, **options) -> LoaderConfig:
    options = {"batch_size": 3, "frames": 4, "size": 24, "cache_mib": 0, **options}
    return LoaderConfig(device="cpu", processes=0, storage=where, **options)


@pytest.mark.parametrize("cache_gib", [0, 1])
@pytest.mark.parametrize("block_mib", [2**-8, 4])
def test_an_epoch_is_the_same_from_an_address(split, memory, tmp_path, cache_gib, block_mib):
    where = storage(tmp_path, cache_gib=cache_gib, block_mib=block_mib)
    with ClipLoader(split, config(where)) as here, ClipLoader(memory[0], config(where)) as there:
        assert str(there.index.root) == memory[0] and there.index.classes == ["a", "b"]
        for ours, theirs in zip(there, here, strict=True):
            assert ours.key == theirs.key and torch.equal(ours.frame_index, theirs.frame_index)
            assert torch.equal(ours.video, theirs.video)
        stats, local = there.stats(), here.stats()
    assert stats["retries"] == 0 == local["retries"] and stats["bytes_read"] > 0
    assert local["bytes_read"] > 0 and local["disk_cache_misses"] == 0
    assert bool(stats["disk_cache_misses"]) == bool(cache_gib)
    blocks = [path for path in (tmp_path / "cache").glob("??/*") if path.is_file()]
    assert bool(blocks) == bool(cache_gib)


def test_bytes_are_those_of_the_file(split, memory, tmp_path):
    """Ranges that begin, end and cross anywhere, against the plain file."""
    root = ShardIndex.open(memory[0], storage(tmp_path, block_mib=2**-10)).root
    shard = min(split.glob("*.tar"))
    whole, times = shard.read_bytes(), Timers()
    for begin, end in [(0, 1), (1023, 1025), (1024, 2048), (100, 5000), (0, len(whole)), (7, 7)]:
        for _ in range(2):
            assert root.read(shard.name, begin, end - begin, times) == whole[begin:end]
    assert times["bytes"] == len(whole)  # each block came once
    with pytest.raises(DataError, match="the shard ends inside this sample"):
        root.read(shard.name, 0, len(whole) + 1, times)
    with pytest.raises(DataError, match="the index has no such shard"):
        root.read("../classes.json", 0, 1, times)


def test_short_answers_are_tried_again_and_then_refused(split, memory, tmp_path, monkeypatch):
    index = ShardIndex.open(memory[0], storage(tmp_path, tries=4, cache_gib=0))
    exact, times, left = ShardIndex.open(split).read(0), Timers(), [2]
    whole = type(memory[1]).cat_file

    def short(self, *arguments):
        left[0] -= 1
        content = whole(self, *arguments)
        return content if left[0] < 0 else content[:-1]

    monkeypatch.setattr(type(memory[1]), "cat_file", short)
    row = index.row(0)
    assert index.root.read(row.shard, row.offset, row.size, times) == exact
    assert times["retry"] == 2 and times["retry_seconds"] > 0 and times["bytes"] == row.size
    left[0] = 10**6
    message = (
        rf"set/train/{row.shard}: cannot be read: the answer has {row.size - 1} of {row.size} "
        r"bytes \(4 tries in .* raise tries \(4\)"
    )
    with pytest.raises(StorageError, match=message):
        index.read(0)


def test_a_place_that_hangs_ends_the_epoch_and_skips_nothing(memory, tmp_path, monkeypatch):
    where, released = storage(tmp_path, tries=2, timeout_seconds=0.2), threading.Event()
    with ClipLoader(memory[0], config(where)) as loader:
        monkeypatch.setattr(type(memory[1]), "cat_file", lambda *_: released.wait(60))
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"no answer in 0.2 seconds \(\d tries"):
            next(iter(loader))
        assert time.monotonic() - began < 20 and not loader.skipped
        assert loader.stats()["retries"] >= 1
        assert loader.stats()["read_retry_seconds"] >= 0.2
        released.set()


class Failing:
    """A transport that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    def address(self, name, *, above=False):
        return name

    def get(self, *_):
        self.asked += 1
        time.sleep(0.02)
        raise transport.TransientError("no")


def test_when_one_gives_up_the_others_do_too(memory, tmp_path):
    root = ShardIndex.open(
        memory[0], storage(tmp_path, tries=900, backoff_seconds=0, cache_gib=0)
    ).root
    assert isinstance(root, remote.RemoteFolder)
    answering, root._transport = root._transport, Failing()
    shard, times, failed = next(iter(root.shards)), Timers(), []

    def read() -> None:
        try:
            root.read(shard, 0, 9, times)
        except StorageError:
            failed.append(time.monotonic())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    root._failed_at = time.monotonic()  # as another thread does at the end of its tries
    for thread in threads:
        thread.join(20)
    assert len(failed) == 4 and root._transport.asked < 4 * 900
    root._transport.asked = 0
    read()
    assert root._transport.asked == 1  # one that was waiting for its turn
    failing, root._transport = root._transport, answering
    read()
    root._transport, failing.asked = failing, 0
    root.config = dataclasses.replace(root.config, tries=5)
    read()
    assert failing.asked == 5 and len(failed) == 6  # there was an answer in between


@pytest.mark.parametrize(
    ("code", "after", "kind", "wait"),
    [
        (503, "7", transport.TransientError, 7),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", transport.TransientError, 0),
        (404, None, transport.NotFound, None),
        (403, None, transport.PermanentError, None),
        (416, None, transport.PermanentError, None),
    ],
)
def test_which_answers_may_change(code, after, kind, wait):
    headers = Message()
    if after:
        headers["Retry-After"] = after
    found = http_transport._status(HTTPError("http://host", code, "so", headers, None))
    assert type(found) is kind and str(code) in str(found)
    assert getattr(found, "retry_after", None) == wait


def test_a_full_disk_switches_the_cache_off(split, memory, tmp_path, monkeypatch, caplog):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with ClipLoader(memory[0], config(storage(tmp_path))) as loader:
        assert sum(len(batch) for batch in loader) == 9 and not loader.skipped
        # Read in pieces from then on, not in whole blocks of which nothing is kept.
        assert loader.stats()["bytes_read"] < 2 * sum(p.stat().st_size for p in split.glob("*.tar"))
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "nothing more is kept in the disk cache: No space left" in line
    assert not [path for path in (tmp_path / "cache").glob("??/*") if path.suffix == ".tmp"]


def test_without_an_index_the_error_says_how_to_make_one(memory, tmp_path):
    memory[1].rm("/set/train/index.parquet")
    with pytest.raises(DataError, match=r"there is no index.parquet.*`stmeta index FOLDER` there"):
        ClipLoader(memory[0], config(storage(tmp_path)))


def test_the_stride_that_shards_were_made_for_counts_at_an_address_too(memory, tmp_path):
    memory[1].pipe("/set/ingest.json", b'{"options": {"stride": 4}}')
    with ClipLoader(memory[0], config(storage(tmp_path), stride=4, frames=2)) as loader:
        starts = [int(i) for _ in range(3) for batch in loader for i in batch.frame_index[:, 0]]
    assert {start % 4 for start in starts} == {0} and len(set(starts)) > 1


def test_addresses_that_cannot_be_used(tmp_path, split, monkeypatch):
    assert locate(f"file://{split}") == split == locate(str(split))
    with pytest.raises(ValueError, match="nosuch"):
        locate("nosuch://set/train", storage(tmp_path))
    with pytest.raises(ValueError, match="give it as a string"):
        locate(Path("http://host/train"))
    for url in ("http://", "http://host/train?key=1", "http://host/train#1"):
        with pytest.raises(ValueError, match="must be http"):
            locate(url, storage(tmp_path))

    def missing(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(BackendUnavailableError, match="s3://set/train: cannot be opened: Install"):
        locate("s3://set/train", storage(tmp_path))


def test_a_password_is_not_shown_and_goes_to_processes(tmp_path):
    root = locate("http://me:secret@host/set/train", storage(tmp_path))
    root.shards = {"0.tar": [9, 9]}
    other = pickle.loads(pickle.dumps(root))
    assert str(other) == "http://host/set/train" and other.url == root.url
    assert other.shards == root.shards and other.config == root.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tries": 0}, "tries must be 1 or more, got 0"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        ({"backoff_seconds": -1}, "backoff_seconds must be 0 or more"),
        ({"cache_gib": -1}, "cache_gib must be 0 or more"),
        ({"block_mib": 0}, r"block_mib must be in \[1/1024, 64\]"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        StorageConfig(**options)


def test_a_local_folder_needs_no_network_code(split):
    index = ShardIndex.open(split)
    row = index.row(0)
    place = VideoPlace(row.shard, row.offset, row.size, row.frames, row.rotation, row.fps)
    exact = SampleDecoder(split).decode(0, place, np.arange(3), Timers()).video
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "import stmeta.data.decode.worker\n"
        "from stmeta.data.decode.sample import SampleDecoder, VideoPlace\n"
        "from stmeta._util.timers import Timers\n"
        f"place = VideoPlace(*{tuple(place)!r})\n"
        f"decoder = SampleDecoder(Path({str(split)!r}))\n"
        "video = decoder.decode(0, place, np.arange(3), Timers()).video\n"
        "heavy = {'fsspec', 'urllib.request', 'stmeta.data.storage.remote', 'torch'}\n"
        "print(int(video.sum()), sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == f"{int(exact.sum())} []", done.stderr
