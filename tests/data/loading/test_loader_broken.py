"""What a loader does about videos and shards that cannot be read."""

from __future__ import annotations

import os

import pytest

from stmeta._errors import DataError
from stmeta.data.decode import pyav
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.writer import ShardIndex
from tests.data._loading import BROKEN, COUNT, all_same, broken, config, overwrite, split

__all__ = ["broken", "split"]  # fixtures


def test_broken_videos_are_replaced_and_reported(broken):
    index = ShardIndex.open(broken)
    label = {index.row(i).key: index.row(i).label for i in range(len(index))}
    with ClipLoader(broken, config(max_error_rate=0.2)) as loader:
        found = [batch for _ in range(2) for batch in loader]
        assert [len(batch) for batch in found] == [4] * 12
        assert {skip.key for skip in loader.skipped} == BROKEN
        assert len(loader.skipped) == 3 and all(skip.reason for skip in loader.skipped)
        assert loader.stats()["skipped"] == 3
        for epoch in range(2):
            for position in range(6):
                batch = found[6 * epoch + position]
                planned = [index.row(r.sample).key for r in loader.sampler.batch(epoch, position)]
                for key, wanted in zip(batch.key, planned, strict=True):
                    assert key == wanted or wanted in BROKEN
                    assert key not in BROKEN and label[key] == label[wanted]
        state = {"epoch": 1, "position": 0}
    with ClipLoader(broken, config(max_error_rate=0.2, cache_mib=0)) as loader:
        loader.load_state_dict(state)
        assert all_same(list(loader), found[6:])


def test_evaluation_leaves_broken_videos_out(broken):
    with ClipLoader(broken, config(train=False, max_error_rate=0.2)) as loader:
        keys = [key for batch in loader for key in batch.key]
    assert keys == [f"clip{i}" for i in range(COUNT) if f"clip{i}" not in BROKEN]


def test_too_many_broken_videos_stop_the_run_with_their_list(broken):
    with (
        ClipLoader(broken, config(max_error_rate=0.05, prefetch=0)) as loader,
        pytest.raises(
            DataError, match=r"[23] of 26 samples cannot be read(.|\n)*clip\d+ \(0.*tar\): "
        ),
    ):
        list(loader)


def test_a_stale_index_is_built_again_and_lists_the_broken(broken):
    for path in broken.glob("*.tar"):
        os.utime(path)
    with ClipLoader(broken, config(max_error_rate=0.2)) as loader:
        assert {skip.key for skip in loader.skipped} == BROKEN
        assert len(loader.index) == COUNT - 3
        assert len(list(loader)) == 5
        assert len(loader.skipped) == 3
    with pytest.raises(DataError, match="3 of 26 samples cannot be read"):
        ClipLoader(broken, config())


def test_a_video_cut_short_is_found(broken):
    """Same size in the shard, zeros after the middle, as a crashed copy leaves it."""
    index = ShardIndex.open(broken)
    row = index.row(0)
    half = row.size // 2
    overwrite(broken / row.shard, row.offset + half, bytes(row.size - half))
    with ClipLoader(broken, config(max_error_rate=0.5, train=False)) as loader:
        list(loader)
        assert row.key in {skip.key for skip in loader.skipped}


def test_a_missing_shard_is_an_error(split, tmp_path):
    index = ShardIndex.open(split)
    index.root = tmp_path
    with (
        ClipLoader(index, config()) as loader,
        pytest.raises(DataError, match="cannot be read: No such file"),
    ):
        next(iter(loader))


def test_unexpected_errors_name_the_sample(split, monkeypatch):
    monkeypatch.setattr(pyav, "decode", lambda *_, **__: 1 / 0)
    with ClipLoader(split, config()) as loader, pytest.raises(ZeroDivisionError) as caught:
        next(iter(loader))
    assert "while reading sample 'clip" in caught.value.__notes__[0]
