"""The data set that is made of three others: clips, splits, manifest, command."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from stmeta import cli
from stmeta._errors import DataError
from stmeta.data.datasets import composite
from stmeta.data.ingest.encode import EncodeOptions, encode_frames
from stmeta.data.shards.writer import ShardIndex
from tests.data._composite import CLASSES, HEAD, SMALL, clips, local, write, youtube
from tests.data._videos import decode, remux

__all__ = ["clips", "local"]  # fixtures


def make(local: Path, out: Path, **options):
    given = {
        "kinetics": [local / "train.csv"],
        "kinetics_videos": [local / "k400"],
        "tinyvirat": [local / "tiny_train_v2.json"],
        "tinyvirat_videos": [local / "TinyVIRAT_V2"],
        "encode": SMALL,
        "workers": 1,
        "seed": 2,  # "talking" is held out, which is also the second label of a clip of train
    }
    return composite.build(out, **(given | options))


@pytest.fixture(scope="module")
def made(local, tmp_path_factory) -> composite.CompositeReport:
    return make(local, tmp_path_factory.mktemp("made") / "data")


def describe(out: Path) -> dict[str, dict]:
    """Content of KEY.json by the name of the clip, with the split and the label of KEY.cls."""
    found = {}
    for path in sorted(out.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for name, content in members.items():
            if name.endswith(".json"):
                record = json.loads(content)
                record |= {"split": path.parent.name, "cls": int(members[name[:-4] + "cls"])}
                found[record["source"]] = record
    return found


def test_one_set_of_shards(made, local):
    out = Path(made.out)
    clips = describe(out)
    assert len(clips) == 15 + 6
    classes = json.loads((out / "classes.json").read_text())
    assert sorted(classes) == sorted([*CLASSES, "talking", "vehicle moving", "opening"])
    found = {
        split: {c["cls"] for c in clips.values() if c["split"] == split}
        for split in ("train", "heldout")
    }
    assert not found["train"] & found["heldout"]
    # The classes of train come first, so that a classifier needs no table.
    assert found["train"] - {-1} == set(range(6)) and found["heldout"] == {6, 7}
    for record in clips.values():
        assert record["labels"] == [classes[i] for i in record["label_ids"]]
        assert record["cls"] == record["label"] == (record["label_ids"] or [-1])[0]
        assert record["fps"] == 10
        assert record["frames"] == (100 if record["source_video"]["frames"] == 260 else 20)
    parent = "tinyvirat/tiny_train_v2/VIRAT_S_000204_04_000738_000977"
    assert clips[f"{parent}/000000"]["labels"] == ["riding a bike", "talking"]
    assert [clips[f"{parent}/{i:06d}"]["labels"] for i in (4, 5)] == [[], []]
    assert clips[f"{parent}/000005"]["cls"] == -1
    assert clips[f"{parent}/000005"]["split"] == "train"
    index = ShardIndex.open(out / "train")
    row = next(index.row(i) for i in range(len(index)) if index.frames[i] == 100)
    assert (row.codec, row.height, row.width, row.fps) == ("h264", 48, 64, 10)
    assert str(local) not in (out / "manifest.json").read_text()
    assert not list(out.rglob("*.tmp"))


def test_manifest_counts(made):
    manifest = json.loads((Path(made.out) / "manifest.json").read_text())
    assert manifest == made.manifest
    clips = describe(Path(made.out))
    for split, counts in manifest["splits"].items():
        mine = [c for c in clips.values() if c["split"] == split]
        assert counts["clips"] == len(mine)
        assert counts["short"] == sum(c["frames"] < 100 for c in mine)
        assert counts["unlabelled"] == sum(c["cls"] == -1 for c in mine)
        assert counts["classes"] == len({c["cls"] for c in mine} - {-1})
    assert sum(counts["classes"] for counts in manifest["splits"].values()) == 8
    for entry in manifest["classes"]:
        mine = [c for c in clips.values() if c["cls"] == entry["label"]]
        assert entry["clips"] == len(mine) == sum(entry["datasets"].values())
        assert {c["split"] for c in mine} == {entry["split"]}
        assert entry["datasets"] == Counter(c["dataset"] for c in mine)
    bike = next(entry for entry in manifest["classes"] if entry["name"] == "riding a bike")
    assert bike["datasets"] == {"kinetics": 4, "tinyvirat": 1}
    assert bike["spellings"] == {"Riding_A_Bike": 1, "riding a bike": 4}
    kinetics, tiny = manifest["datasets"]["kinetics"], manifest["datasets"]["tinyvirat"]
    assert {k: kinetics[k] for k in ("listed", "missing", "refused", "repeated")} == {
        "listed": 20,
        "missing": 4,
        "refused": 1,
        "repeated": 0,
    }
    assert tiny["listed"] == 6 and "missing" not in tiny
    assert manifest["missing"] == {
        "the file is missing": [
            f"kinetics/{youtube(i)}_{i:06d}_{i + 10:06d}" for i in (4, 8, 12, 16)
        ]
    }
    assert list(manifest["refused"]) == [f"kinetics/{youtube(17)}_000017_000027"]
    assert manifest["refused"] == made.broken
    across = [c for c in clips.values() if "talking" in c["labels"][1:]]
    splits = {entry["name"]: entry["split"] for entry in manifest["classes"]}
    assert splits["riding a bike"] == "train" and splits["talking"] == "heldout"
    assert manifest["across"] == len(across) == 1


def test_picture(made, tmp_path):
    image = imread(Path(made.out) / "classes.png")
    assert image.shape[0] > 800 and image.shape[1] > 1000
    colours = {
        tuple(pixel) for pixel in (image[::4, ::4, :3] * 255).round().reshape(-1, 3).tolist()
    }
    assert {(0x2A, 0x6F, 0xBB), (0xE0, 0x7B, 0x39)} <= colours


class _Stop(Exception):
    pass


def test_resume_gives_the_same_bytes(made, local, tmp_path):
    def state(out: Path) -> dict[str, bytes]:
        kinds = (".tar", ".idx", ".json")
        files = (path for path in out.rglob("*") if path.suffix in kinds)
        return {str(path.relative_to(out)): path.read_bytes() for path in files}

    def stop(split: str, done: int, total: int, bad: int) -> None:
        if split == "heldout" or done == limit:
            raise _Stop

    make(local, tmp_path / "whole", shard_mib=0.02)
    # Where the videos lie makes no difference, nor does a move between two runs.
    moved = shutil.copytree(local, tmp_path / "moved")
    for limit, source in ((8, local), (99, moved)):
        with pytest.raises(_Stop):
            make(source, tmp_path / "out", shard_mib=0.02, progress=stop, resume=limit > 8)
    done = make(moved, tmp_path / "out", shard_mib=0.02, resume=True)
    assert state(tmp_path / "out") == state(tmp_path / "whole")
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) > 2
    assert done.manifest == made.manifest
    with pytest.raises(
        DataError, match=r"cannot continue with other options \(min_frames: 10 → 5\)"
    ):
        make(local, tmp_path / "out", shard_mib=0.02, resume=True, min_frames=5)
    next((moved / "k400").rglob("*.mp4")).unlink()
    with pytest.raises(DataError, match="changed since the start"):
        make(moved, tmp_path / "out", shard_mib=0.02, resume=True)


def ramp(seconds: int, codec: str = "h264") -> bytes:
    """A video at 20 frames per second whose brightness says the time: 10 a second."""
    frames = (np.full((48, 48, 3), i // 2, np.uint8) for i in range(20 * seconds))
    return encode_frames(frames, 20, codec=codec, gop=30, crf=5)


@pytest.mark.parametrize(
    ("name", "seconds", "first", "count"),
    [
        ("{id}_000003_000013.mp4", 12, 0, 100),  # the name says that it was cut
        ("{id}.mp4", 10, 0, 100),  # as long as the clip: cut
        ("{id}.mp4", 15, 30, 100),  # longer: the whole video
        ("{id}.mp4", 12, 30, 90),  # the clip is longer than what is left
        ("late/{id}.mkv", 15, 30, 100),  # its first time stamp is not 0
    ],
)
def test_clip_times(name, seconds, first, count, tmp_path):
    video = ramp(seconds)
    if name.startswith("late"):
        video = ramp(seconds, "vp8")  # packets in the order of their times
        video = remux(video, "matroska", pts=lambda number: 5000 + 50 * number)
    write(tmp_path / "videos" / name.format(id=youtube(0)), video)
    write(tmp_path / "a.csv", HEAD + f"x,{youtube(0)},3,13,train,0\n")
    made = composite.build(
        tmp_path / "out",
        kinetics=[tmp_path / "a.csv"],
        kinetics_videos=[tmp_path / "videos"],
        encode=EncodeOptions(fps=10, short_side=48, crf=5),
        workers=1,
    )
    frames = decode(ShardIndex.open(Path(made.out) / "train").read(0))
    assert len(frames) == count
    levels = frames.mean((1, 2, 3))
    assert np.abs(levels - (first + np.arange(count))).max() < 2


def test_a_clip_after_the_end_is_refused(tmp_path, clips):
    write(tmp_path / "videos" / f"{youtube(0)}.mp4", clips[3])
    write(tmp_path / "videos" / f"{youtube(1)}.mp4", clips[0])
    rows = f"x,{youtube(0)},50,55,train,0\nx,{youtube(1)},0,10,train,0\n"
    made = composite.build(
        tmp_path / "out",
        kinetics=[write(tmp_path / "a.csv", HEAD + rows)],
        kinetics_videos=[tmp_path / "videos"],
        encode=SMALL,
        workers=1,
    )
    assert made.manifest["splits"]["train"]["clips"] == 1
    assert "ends after 10.4 s, before the clip begins (50 s)" in "".join(made.broken.values())


def test_a_damaged_end_is_found(tmp_path, clips):
    """Also where the clip ends before the file does."""
    broken = bytearray(clips[3])
    broken[len(broken) // 3 :] = bytes(len(broken) - len(broken) // 3)
    write(tmp_path / "videos" / f"{youtube(0)}_000000_000005.mp4", bytes(broken))
    write(tmp_path / "videos" / f"{youtube(1)}.mp4", bytes(broken))
    write(tmp_path / "videos" / f"{youtube(2)}.mp4", clips[0])
    rows = [f"x,{youtube(0)},0,5,train,0", f"x,{youtube(1)},5,9,train,0", f"y,{youtube(2)},0,2,,0"]
    made = composite.build(
        tmp_path / "out",
        kinetics=[write(tmp_path / "a.csv", HEAD + "\n".join(rows))],
        kinetics_videos=[tmp_path / "videos"],
        frames=15,  # of the first file, less than what is whole
        encode=SMALL,
        workers=1,
    )
    assert len(made.broken) == 2 and made.manifest["datasets"]["kinetics"]["refused"] == 2


def test_short_clips(local, tmp_path):
    made = make(local, tmp_path / "out", min_frames=21)
    assert sum(split["clips"] for split in made.manifest["splits"].values()) == 2
    assert sum("too short: 20 of at least 21" in r for r in made.manifest["refused"].values()) == 19
    assert len(made.broken) == 1
    with pytest.raises(ValueError, match="min_frames must be 1"):
        make(local, tmp_path / "no", min_frames=101)


def test_wrong_use(local, tmp_path):
    with pytest.raises(DataError, match="none of 1 clips listed has its video: the file is miss"):
        rows = write(tmp_path / "a.csv", HEAD + "x,-3B32lodo2M,59,69,train,0\n")
        composite.build(
            tmp_path / "out", kinetics=[rows], kinetics_videos=[local / "k400"], workers=1
        )
    with pytest.raises(ValueError, match="needs annotations"):
        composite.build(tmp_path / "out")
    with pytest.raises(ValueError, match="tinyvirat needs both"):
        make(local, tmp_path / "out", tinyvirat=[])
    with pytest.raises(ValueError, match="test_fraction must be"):
        make(local, tmp_path / "out", test_fraction=1.0)
    with pytest.raises(DataError, match="there is no such folder"):
        make(local, tmp_path / "out", kinetics_videos=[tmp_path / "nowhere"])
    assert not (tmp_path / "out").exists()


def test_command(local, tmp_path, capsys):
    words = ["dataset", "composite", "--out", tmp_path / "out", "--short-side", 48]
    words += ["--kinetics", local / "train.csv", "--kinetics-videos", local / "k400"]
    words += ["--workers", 1]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    shown = capsys.readouterr().out
    assert stop.value.code == 1  # one video is broken
    assert f"kinetics/{youtube(17)}_000017_000027" in shown and "not a video" in shown
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in [*words, "--resume", "--json"]])
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["clips"] > 0
