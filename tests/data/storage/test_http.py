"""Shards over HTTP: a real nginx, and behind it a server that fails as it is told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stmeta import cli
from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import ShardIndex
from stmeta.data.storage.config import StorageConfig
from stmeta.data.storage.folder import StorageError
from tests.data._loading import all_same
from tests.data._served import NGINX, site, split

__all__ = ["site", "split"]

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def config(tmp_path: Path, processes: int = 0, train: bool = True, **options) -> LoaderConfig:
    options = {"cache_dir": tmp_path / "cache", "backoff_seconds": 0.01, **options}
    return LoaderConfig(
        train=train,
        batch_size=3,
        frames=4,
        size=24,
        cache_mib=0,
        device="cpu",
        processes=processes,
        storage=StorageConfig(**options),
    )


def epoch(root, options: LoaderConfig) -> tuple[list, dict]:
    with ClipLoader(root, options) as loader:
        found = list(loader)
        assert not loader.skipped
        return found, loader.stats()


@pytest.mark.parametrize(("processes", "path"), [(0, ""), (2, ""), (0, "moved/")])
def test_an_epoch_over_http_is_the_local_one(site, split, tmp_path, processes, path):
    options = config(tmp_path, processes, timeout_seconds=10)
    exact, _ = epoch(split, options)
    found, stats = epoch(site.url(path), options)
    assert all_same(found, exact) and stats["retries"] == 0
    shards = len(list(split.glob("*.tar")))
    # Shards are smaller than a block: each came once, whichever thread or process wanted it.
    assert stats["disk_cache_misses"] == shards
    assert stats["bytes_read"] == sum(path.stat().st_size for path in split.glob("*.tar"))
    found, stats = epoch(site.url(path), options)
    assert all_same(found, exact)
    assert stats["bytes_read"] == 0 == stats["disk_cache_misses"] < stats["disk_cache_hits"]
    answered = site.log(shards)  # and the index, which comes before them
    assert sum(line.startswith("206") and ".tar" in line for line in answered) == shards


def test_without_a_cache_only_what_clips_need_is_read(site, split, tmp_path):
    options = config(tmp_path, train=False, cache_gib=0)  # training reads ahead
    found, stats = epoch(site.url(), options)
    assert all_same(found, epoch(split, options)[0])
    rows = [ShardIndex.open(split).row(i).size for i in range(9)]
    assert stats["bytes_read"] == sum(rows) and stats["disk_cache_hits"] == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("processes", [0, 2])
def test_faults_that_pass_cost_time_and_nothing_else(site, split, tmp_path, processes):
    site.faulty.faults = {"000000.tar": ["500", "500"], "000001.tar": ["stall"]}
    site.faulty.faults["000002.tar"] = ["cut", "cut"]
    options = config(tmp_path, processes, timeout_seconds=2)
    found, stats = epoch(site.url("faulty/"), options)
    assert all_same(found, epoch(split, options)[0])
    assert stats["retries"] == 5 and stats["read_retry_seconds"] >= 2
    assert not any(site.faulty.faults.values())


@pytest.mark.parametrize("processes", [0, 1])
def test_a_shard_that_trickles_ends_the_epoch_in_time(site, tmp_path, processes):
    options = config(tmp_path, processes, tries=2, timeout_seconds=0.5)
    with ClipLoader(site.url("trickle/"), options) as loader:
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"\.tar: cannot be read: .* \(\d tries in"):
            next(iter(loader))
        assert time.monotonic() - began < 20 and not loader.skipped
        assert loader.stats()["retries"] >= 1
    assert time.monotonic() - began < 30


def test_a_server_that_goes_away_ends_the_epoch(site, tmp_path):
    options = config(tmp_path, tries=3, timeout_seconds=1, cache_gib=0)
    with ClipLoader(site.url(), options) as loader:
        batches = iter(loader)
        next(batches)
        site.stop()
        began = time.monotonic()
        with pytest.raises(DataError, match=r"Connection refused \(\d tries .* reached, or raise"):
            while True:  # what was read ahead may be the whole epoch
                for _ in batches:
                    pass
                batches = iter(loader)
        assert time.monotonic() - began < 20 and not loader.skipped
    with pytest.raises(StorageError, match=r"train/index.parquet: cannot be read: Connection"):
        ClipLoader(site.url(), options)


def test_truncated_answers_are_refused_in_the_end(site, tmp_path):
    site.faulty.faults = {"000000.tar": ["cut"] * 9}
    index = ShardIndex.open(site.url("faulty/"), config(tmp_path, tries=3).storage)
    with pytest.raises(StorageError, match=r"answer ends after \d+ of \d+ bytes \(3 tries in"):
        index.read(0)
    assert len(site.faulty.faults["000000.tar"]) == 6


def test_answers_that_will_not_change_are_not_asked_for_again(site, split, tmp_path):
    where = config(tmp_path, timeout_seconds=5).storage
    with pytest.raises(StorageError, match=r"answers 200 to a range request.* such as nginx"):
        ShardIndex.open(site.url("whole/"), where)
    with pytest.raises(DataError, match=r"no index.parquet.*run `stmeta index FOLDER` there"):
        ShardIndex.open(site.url("nowhere/"), where)
    assert [line[:3] for line in site.log(2)] == ["200", "404"]
    site.faulty.faults = {"index.parquet": ["403"]}
    with pytest.raises(StorageError, match=r"the server answers 403 .*who may read it"):
        ShardIndex.open(site.url("faulty/"), where)


def test_shards_that_are_not_those_of_the_index(site, split, tmp_path):
    index = ShardIndex.open(site.url(), config(tmp_path).storage)
    shard = split / index.row(0).shard
    content, stat = shard.read_bytes(), shard.stat()
    try:
        shard.write_bytes(content + bytes(512))
        with pytest.raises(StorageError, match=r"bytes, the index was made when it had \d+"):
            index.read(0)
        shard.unlink()
        # One that is missing is a fault of its samples, as in a local folder.
        with pytest.raises(DataError, match=r"cannot be read: .*000000.tar: .* answers 404"):
            index.read(0)
    finally:
        shard.write_bytes(content)
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_login_goes_in_a_header_and_is_not_shown(site, tmp_path):
    root = ShardIndex.open(site.url("faulty/", "me:secret@"), config(tmp_path).storage).root
    assert all(headers["Authorization"] == "Basic bWU6c2VjcmV0" for headers in site.faulty.headers)
    site.stop()
    shard = next(iter(root.shards))
    root.config = config(tmp_path, tries=1).storage
    with pytest.raises(StorageError) as caught:
        root.read(shard, 0, 9, Timers())
    assert "secret" not in str(caught.value) and f"127.0.0.1:{site.port}" in str(caught.value)


def test_commands_take_an_address(site, split, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STMETA_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, "--json"])
        assert stop.value.code == 0
        return json.loads(capsys.readouterr().out)

    options = ["--batch-size", "3", "--frames", "4", "--size", "24", "--tries", "3"]
    streamed = run("stream", site.url(), *options)
    assert streamed["clips"] == 9 and streamed["disk_cache_misses"] > 0
    assert (tmp_path / "cache" / "shards").is_dir()
    there, here = run("inspect", site.url()), run("inspect", str(split))
    assert {**there, "path": ""} == {**here, "path": ""} and there["samples"] == 9
    sample, local = (run("inspect", at, "--sample", "c4") for at in (site.url(), str(split)))
    assert sample["sha256"] == local["sha256"] and sample["class"] == local["class"] == "a"
