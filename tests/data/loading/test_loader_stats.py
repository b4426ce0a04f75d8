"""What a loader keeps in memory, counts and logs."""

from __future__ import annotations

import logging

import pytest

from stmeta.data.decode import pyav
from stmeta.data.loading.loader import ClipLoader
from tests.data._loading import COUNT, config, split

__all__ = ["split"]  # a fixture


def test_nothing_is_decoded_twice_when_the_set_fits(split, monkeypatch):
    with ClipLoader(split, config(cache_mib=64)) as loader:
        for _ in range(4):  # an epoch drops two of the 26
            list(loader)
        list(loader.load([loader.sampler.clip(i) for i in range(COUNT)]).key)
        for name in ("decode", "decode_yuv"):
            monkeypatch.setattr(pyav, name, lambda *_, **__: pytest.fail("decoded again"))
        for _ in range(2):
            assert len(list(loader)) == 6
        stats = loader.stats()
    assert stats["cache_misses"] < 2 * COUNT and stats["cache_hits"] > 5 * COUNT
    assert 0 < stats["cache_mib"] < 64


def test_a_cache_that_is_too_small_keeps_what_it_has(split):
    with ClipLoader(split, config(cache_mib=2)) as loader:
        shares = []
        for _ in range(3):
            before = loader.stats()
            list(loader)
            after = loader.stats()
            shares.append(after["cache_hits"] - before["cache_hits"])
            assert after["cache_mib"] <= 2
    assert min(shares[1:]) >= 6  # 8 videos of 24 fit, each epoch misses two of 26


def test_stats(split):
    with ClipLoader(split, config()) as loader:
        list(loader)
        stats = loader.stats()
    assert stats["clips"] == 24 and stats["decoder"] == "pyav"
    assert stats["clips_per_second"] == pytest.approx(24 / stats["elapsed_seconds"])
    assert 0 < stats["wait_seconds"] <= stats["elapsed_seconds"] and 0 < stats["wait_share"] <= 1
    assert stats["bound"] in ("read", "decode", "augment") and stats["decode_seconds"] > 0


def test_the_log_says_what_decodes_and_why(split, caplog):
    with caplog.at_level(logging.INFO, "stmeta.data"), ClipLoader(split, config()):
        pass
    (line,) = [r.getMessage() for r in caplog.records if "decodes" in r.getMessage()]
    assert "26 videos (h264), 0 bad" in line and "PyAV decodes, torch resizes" in line
    assert "least CPU time" in line and "holds all" in line
