"""`stmeta bench` on a tiny set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest

from stmeta import cli
from stmeta.commands.bench import flags, judge
from stmeta.data.loading.loader import LoaderConfig
from stmeta.data.profile import compare
from stmeta.data.profile.compare import Comparison
from stmeta.data.profile.usage import free_memory, usage
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards

FAST = ["--seconds", 0.05, "--rounds", 2, "--threads", 1, "--batch-size", 4, "--frames", 4]
FAST += ["--size", 16, "--device", "cpu", "--prefetch", 1]


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_video) -> Path:
    root = tmp_path_factory.mktemp("set$") / "train"
    videos = [make_video(i, frames=8) for i in range(8)] + [b"garbage" * 99]
    write_shards(
        [
            EncodedSample(key=f"c{i}", video=video, extension="mp4", label=0)
            for i, video in enumerate(videos)
        ],
        root,
        check=False,
    )
    return root


@pytest.fixture(autouse=True)
def without_dali(monkeypatch) -> None:
    """Its import takes seconds, and whether it is there differs."""
    monkeypatch.setattr(compare, "dali_problem", lambda: "it is not here")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def numbers(value: dict | list) -> Iterator[float]:
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from numbers(item)
        elif isinstance(item, int | float):
            yield item


def test_every_way_is_measured(split, tmp_path, capsys):
    picture, options = tmp_path / "bench.png", ["--cache-mib", 0, "--max-error-rate", 0.3]
    assert run("bench", split, *FAST, *options, "--json", "--save", picture) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {"dali": "it is not here", "threads": "it is what was given"}
    ways = found["ways"]
    assert {"as given", "processes", "all in memory", "raw decode", "cached batch"} <= set(ways)
    for name, way in ways.items():
        assert len(way["rounds"]) == 2 and min(way["rounds"]) > 0, name
        assert way["frames_per_second"] == pytest.approx(4 * way["clips_per_second"])
        assert all(value >= 0 for value in numbers({**way, "rss_growth_mib": 0})), name
    for name in ("as given", "processes", "all in memory"):
        way = ways[name]
        ms, limit = way["batch_ms"], ways[way["limit"]]
        assert 0 < ms["p50"] <= ms["p95"] <= ms["p99"] and way["first_batch_ms"] > 0
        assert sum(way["work_share"].values()) == pytest.approx(1)
        assert way["share_of_limit"] == way["clips_per_second"] / limit["clips_per_second"]
        assert way["from_memory"] == (name == "all in memory")
    assert ways["all in memory"]["limit"] == "cached batch"
    assert ways["cached batch"]["clips_per_second"] > 2 * ways["as given"]["clips_per_second"]
    assert found["settings"]["processes"] == {"processes": 1}
    assert [skip["key"] for skip in found["skips"]] == ["c8"]
    assert found["use"] in ways and found["verdict"].startswith("What limits is ")
    height, width = matplotlib.image.imread(picture).shape[:2]
    assert width > height > 200


def test_the_table_and_what_is_left_out(split, monkeypatch, capsys):
    monkeypatch.setattr(compare, "free_memory", lambda: 1000)
    options = ["--decoder", "pyav", "--processes", 0, "--max-error-rate", 0.3]
    assert run("bench", split, *FAST, "--cache-mib", 0, *options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["way", "clips/s"]
    shown = "\n".join(lines[2:])
    assert "threads is left out: it is what was given" in shown
    assert "decoded, the videos take 1 MiB; free memory is 0 MiB" in shown.replace("  ", " ")
    assert "000000.tar: c8: not a video" in shown
    assert lines[-1].startswith("What limits is ") and "clips/s" in lines[-1]
    rows = {line[:14].strip() for line in lines[2:6]}
    assert rows == {"as given", "processes", "raw decode", "cached batch"}


def test_wrong_use(split, tmp_path, capsys):
    for options in (("--seconds", 0), ("--rounds", 0), ("--save", tmp_path / "no" / "b.png")):
        assert run("bench", split, *options) == 2
    assert "the folder of --save must exist" in capsys.readouterr().err
    assert run("bench", tmp_path / "nothing") == 1
    assert run("bench", split, *FAST) == 1  # more bad samples than a loader takes
    assert "more than max_error_rate" in capsys.readouterr().err


def comparison(best: str, *, given: float, rate: float, work: dict, batch: float) -> Comparison:
    def way(speed: float) -> dict:
        return {"clips_per_second": speed, "work_share": work}

    results = {"as given": way(given), best: way(rate), "raw decode": way(500.0)}
    results["cached batch"] = way(batch)
    return Comparison(results, {best: {"processes": 2, "cache_mib": 0.0}}, {}, "", [])


@pytest.mark.parametrize(
    ("work", "batch", "bound", "words"),
    [
        ({"read": 0.7, "decode": 0.3}, 9e3, "read", "reading from the disk, 70% of"),
        ({"read": 0.1, "decode": 0.9}, 9e3, "decode", "decoding, .* alone: 500 clips/s"),
        ({"augment": 0.6, "decode": 0.4}, 9e3, "augment", "cropping, resizing"),
        ({"augment": 0.6, "decode": 0.4}, 410.0, "delivery", "handed out again gives 410"),
    ],
)
def test_the_last_line(work, batch, bound, words):
    found = judge(
        comparison("processes", given=200.0, rate=400.0, work=work, batch=batch), remote=False
    )
    assert (found["use"], found["bound"]) == ("processes", bound)
    assert found["verdict"].endswith(
        "Use --processes 2 --cache-mib 0: 400 clips/s, 2.00 times those given."
    )
    assert re.search(words, found["verdict"])


def test_what_is_given_stays_where_others_are_hardly_faster():
    work = {"read": 0.9, "decode": 0.1}
    found = judge(
        comparison("processes", given=396.0, rate=400.0, work=work, batch=9e3), remote=True
    )
    assert found["use"] == "as given"
    assert found["verdict"] == (
        "What limits is reading from the network, 90% of the loader's work. "
        "The given settings are the fastest: 396 clips/s."
    )


def test_settings_as_flags():
    assert flags({"cache_mib": 12.0, "decoder": "dali"}) == "--cache-mib 12 --decoder dali"


def test_decoded_bytes(split):
    index = ShardIndex.open(split)
    one = 8 * 48 * 64 * 3
    assert compare.decoded_bytes(index, LoaderConfig()) == (8 * one, one)
    evaluation = LoaderConfig(train=False, frames=4, views=2)
    assert compare.decoded_bytes(index, evaluation) == (8 * one, one)


def test_usage_grows():
    before = usage()
    kept = bytearray(b"x" * (64 << 20))
    after = usage()
    free = free_memory()
    assert 0 < after.cpu_since(before) < 5
    assert 50 << 20 < after.rss_bytes - before.rss_bytes < 200 << 20
    assert len(kept) < free < 1 << 50
