from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from matplotlib.image import imread

from stmeta import cli
from stmeta._errors import DataError
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from stmeta.data.verify.inspect import find_sample, summarise
from stmeta.data.verify.pictures import pictures
from tests.data._shards import CLASSES, pack, sample
from tests.data._videos import decode


@pytest.fixture(scope="module")
def mixed(make_video, tmp_path_factory):
    """Five good samples, one of them unlabelled and one turned, and two broken ones."""
    root = tmp_path_factory.mktemp("set")
    long = make_video(9, frames=40)
    videos = {
        "a": (make_video(0, frames=10), 0),
        "b": (make_video(1, frames=20, height=64, width=96, fps=10), 2),
        "c": (make_video(2, frames=30, codec="vp8"), 2),
        "d": (make_video(3, frames=12), -1),
        "turned": (make_video(4, frames=14, rotation=90), 2),
        "garbage": (b"no video" * 99, 1),
        "cut": (long[: len(long) * 6 // 10], 1),
    }
    clips = [
        EncodedSample(
            key=key,
            video=video,
            extension="webm" if key == "c" else "mp4",
            label=label,
            source=f"{key}.mov",
        )
        for key, (video, label) in videos.items()
    ]
    write_shards(clips, root / "train", classes=CLASSES, check=False)
    return root / "train"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_summary(mixed):
    found = summarise(mixed)
    assert (found.shards, found.samples, found.frames) == (1, 5, 86)
    assert found.classes == {"bend": 1, "jump": 0, "wave": 3, "unlabelled": 1}
    assert found.codecs == {"h264": 4, "vp8": 1}
    assert found.sizes == {"64×48": 4, "96×64": 1}
    assert found.ranges["frames"] == (10, 14, 30)
    assert found.ranges["frames_per_second"] == (10, 25, 25)
    assert found.ranges["seconds"] == pytest.approx((0.4, 0.56, 2.0))
    assert found.seconds == pytest.approx(2.0 + 66 / 25)
    assert (found.rotated, found.variable_rate) == (1, 0)
    reasons = {row["key"]: row["reason"] for row in found.bad}
    assert reasons.keys() == {"garbage", "cut"} and "not a video" in reasons["garbage"]


def test_a_shard_says_the_same_as_its_split(mixed):
    whole, part = summarise(mixed), summarise(mixed / "000000.tar")
    assert part.path != whole.path
    part.path = whole.path
    assert part == whole
    for key in ("turned", "cut"):
        assert find_sample(mixed, key) == find_sample(mixed / "000000.tar", key)


def test_nothing_good(tmp_path):
    pack(tmp_path / "0.tar", sample("a", b"?" * 999))
    found = summarise(tmp_path)
    assert found.samples == 0 and found.ranges == {} and len(found.bad) == 1
    with pytest.raises(DataError, match="no such folder or shard"):
        summarise(tmp_path / "1.tar")


def test_sample(mixed):
    found = find_sample(mixed, "b")
    index = ShardIndex.open(mixed, details=True)
    assert found.info == index.row(1) and len(found.info.sha256) == 64
    assert found.video == index.read(1)
    assert found.class_name == "wave" and found.faults == []
    assert found.meta["source"] == "b.mov" and found.meta["frames"] == 20
    assert list(found.members) == ["mp4", "cls", "nframes", "json"]
    assert find_sample(mixed, "d").class_name == ""
    broken = find_sample(mixed, "garbage")
    assert any("not a video" in fault for fault in broken.faults)
    assert any("nframes says 0" in fault for fault in broken.faults)
    with pytest.raises(DataError, match="no sample 'turnd'; did you mean turned"):
        find_sample(mixed, "turnd")
    with pytest.raises(DataError, match="there is no sample ''"):
        find_sample(mixed, "")


def test_pictures_are_the_frames(mixed):
    shown, reason = pictures(find_sample(mixed, "b"), 5)
    frames = decode(ShardIndex.open(mixed).read(1))
    assert [picture.index for picture in shown] == [0, 5, 10, 14, 19] and reason == ""
    assert [picture.seconds for picture in shown] == pytest.approx([0, 0.5, 1.0, 1.4, 1.9])
    for picture in shown:
        np.testing.assert_array_equal(picture.image, frames[picture.index])
    shown, _ = pictures(find_sample(mixed, "turned"), 99)
    assert len(shown) == 14 and shown[0].image.shape == (64, 48, 3)
    frames = decode(ShardIndex.open(mixed).read(4))
    np.testing.assert_array_equal(shown[3].image, np.rot90(frames[3], k=-1))
    with pytest.raises(ValueError, match="count must be 1 or more"):
        pictures(find_sample(mixed, "b"), 0)


def test_pictures_of_damage(mixed, make_video, tmp_path):
    assert pictures(find_sample(mixed, "garbage"), 4)[0] == []
    video = make_video(3, frames=20, codec="vp8")
    # Half of it, and a header that does not tell: what is there is shown.
    pack(
        tmp_path / "0.tar",
        sample("half", video, "webm", nframes=struct.pack("<i", 20)),
    )
    found = find_sample(tmp_path, "half")
    found.video = video[: len(video) // 2]
    shown, reason = pictures(found, 20)
    assert 2 < len(shown) < 20 and f"decoding stops after {len(shown)} frames" in reason


def test_command(mixed, tmp_path, capsys):
    assert run("inspect", mixed) == 1
    shown = capsys.readouterr().out
    assert "1 shard, 5 samples, 86 frames" in shown and "2 bad" in shown
    bars = {line.split()[1]: line.count("█") for line in shown.splitlines() if "%" in line}
    assert bars["wave"] == 24 and bars["bend"] == 8 and bars["jump"] == 0
    assert "garbage: not a video" in shown and "1 turned" in shown
    assert run("inspect", mixed, "--json") == 1
    record = json.loads(capsys.readouterr().out)
    assert record["classes"]["wave"] == 3 and record["ranges"]["frames"]["median"] == 14
    assert run("inspect", mixed, "--sample", "b", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["class"] == "wave" and record["json"]["source"] == "b.mov"
    assert run("inspect", mixed, "--sample", "cut") == 1
    assert "truncated" in capsys.readouterr().out
    assert run("inspect", mixed, "--save", tmp_path / "x.png") == 2
    assert "--sample" in capsys.readouterr().err
    assert run("inspect", mixed, "--sample", "b", "--save", tmp_path / "no" / "x.png") == 2


def test_grid(mixed, tmp_path):
    """Six frames and two below them, and nothing else."""
    path = tmp_path / "grid.png"
    assert run("inspect", mixed, "--sample", "b", "--save", path, "--frames", 8) == 0
    picture = imread(path)[:, :, :3].mean(2)
    assert 300 < picture.shape[0] < picture.shape[1] < 2000
    rows = [np.array_split(row, 6, axis=1) for row in np.array_split(picture, 2)]
    used = [[(cell < 0.95).mean() for cell in row] for row in rows]
    assert min(used[0] + used[1][:2]) > 0.3 and max(used[1][2:]) < 0.02, used
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
