"""What is listed, chosen, found and split before a clip is stored."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from stmeta._errors import DataError
from stmeta.data.datasets.composite_annotations import (
    Chosen,
    Listed,
    choose,
    read_kinetics,
    read_minikinetics,
    read_tinyvirat,
)
from stmeta.data.datasets.composite_files import VideoFiles, class_key
from stmeta.data.datasets.composite_plan import plan_composite, split_classes
from tests.data._composite import HEAD, clips, local, write, youtube

__all__ = ["clips", "local"]  # fixtures


def test_kinetics_csv(tmp_path):
    train = write(tmp_path / "train.csv", HEAD + "riding a bike,-3B32lodo2M,59,69,train,0\n")
    assert read_kinetics([train]) == [
        Listed(
            "kinetics",
            "-3B32lodo2M_000059_000069",
            ("riding a bike",),
            "-3B32lodo2M",
            (59.0, 69.0),
        )
    ]
    held = "\ufeffyoutube_id,time_start,time_end,split\r\n--6bJUbfpnQ,17,27,test\r\n\r\n"
    assert read_kinetics([write(tmp_path / "test.csv", held)])[0].labels == ()
    with pytest.raises(DataError, match=r"has no column youtube_id; a Kinetics CSV starts with"):
        read_kinetics([write(tmp_path / "a.csv", "label,id,start\n")])
    for row in ("x,,1,2,train,0", "x,-3B32lodo2M,1,,train,0", "x,-3B32lodo2M,9,2,train,0", "x"):
        with pytest.raises(DataError, match="line 2: no id, or no times"):
            read_kinetics([write(tmp_path / "a.csv", HEAD + row + "\n")])
    with pytest.raises(DataError, match="cannot be read as text"):
        read_kinetics([tmp_path / "none.csv"])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("-3B32lodo2M\n", ""),
        ("youtube_id\n-3B32lodo2M\n", ""),
        ("windsurfing,-3B32lodo2M,59,69\n", "windsurfing"),
        (HEAD + "tap dancing,-3B32lodo2M,59,69,train,0\n", "tap dancing"),
        ("tap_dancing/-3B32lodo2M_000059_000069.mp4 12\n", "tap_dancing"),
        ("k400/train/tap_dancing/-3B32lodo2M.mp4\n", "tap_dancing"),
    ],
)
def test_minikinetics_lists(text, label, tmp_path):
    assert read_minikinetics([write(tmp_path / "list.txt", text)]) == [Chosen("-3B32lodo2M", label)]


def test_minikinetics_chooses(tmp_path):
    clips = [Listed("kinetics", f"{youtube(i)}_x", ("a",), youtube(i), (0, 10)) for i in range(3)]
    taken, alone = choose(clips, [Chosen(youtube(2), "b"), Chosen(youtube(7), "c")])
    assert [(clip.dataset, clip.file, clip.labels) for clip in taken] == [
        ("minikinetics", youtube(2), ("a",))
    ]
    assert alone == [Listed("minikinetics", youtube(7), ("c",), youtube(7))]
    with pytest.raises(DataError, match="line 2: no YouTube id: what,is this"):
        read_minikinetics([write(tmp_path / "list.txt", "-3B32lodo2M\nwhat,is this\n")])


def test_tinyvirat_versions(tmp_path):
    clip = {"id": "000003", "path": "VIRAT_S_1/000003.mp4", "label": ["Talking"], "dim": [9, 8, 7]}
    wanted = [Listed("tinyvirat", "tiny/VIRAT_S_1/000003", ("Talking",), "VIRAT_S_1/000003.mp4")]
    assert read_tinyvirat([write(tmp_path / "tiny.json", json.dumps([clip]))]) == wanted
    assert read_tinyvirat([write(tmp_path / "tiny.json", json.dumps({"tubes": [clip]}))]) == wanted
    test = [{"id": "00017", "dim": [9, 8, 7]}]
    assert read_tinyvirat([write(tmp_path / "t.json", json.dumps(test))]) == [
        Listed("tinyvirat", "t/00017", (), "00017")
    ]
    for wrong in ('{"clips": []}', '[{"label": []}]', '[{"path": "a", "label": [3]}]', "[3]", "{"):
        with pytest.raises(DataError, match=r"t\.json: "):
            read_tinyvirat([write(tmp_path / "t.json", wrong)])


def test_split_by_class():
    names = [f"action {i}" for i in range(518)]  # as many as in the paper
    splits = split_classes(names, 0.2, seed=0)
    assert Counter(splits.values()) == {"train": 414, "heldout": 104}
    assert split_classes(reversed(names), 0.2, seed=0) == splits
    assert split_classes([name.upper() for name in names], 0.2, seed=0) == {
        name.upper(): split for name, split in splits.items()
    }
    assert split_classes(names, 0.2, seed=1) != splits
    # What is there already stays where it is, but for the one at the edge.
    more = split_classes([*names, "another"], 0.2, seed=0)
    assert sum(more[name] != split for name, split in splits.items()) <= 1
    assert sorted(split_classes("ab", 0.01, seed=0).values()) == ["heldout", "train"]
    assert set(split_classes(names, 0, seed=0).values()) == {"train"}
    assert split_classes("a", 0.2, seed=0) == {"a": "train"}


def test_class_key():
    same = ("Riding_A_Bike", "riding a bike", "RIDING-A-BIKE!", " riding  a bike")
    assert {class_key(label) for label in same} == {"ridingabike"}
    assert class_key("massaging person's head") == class_key("massaging_persons_head")
    assert class_key("Straße 1") == class_key("STRASSE_1") != class_key("STRASSE_2")
    assert class_key("_!?") == ""


def test_minikinetics_and_val(local, tmp_path):
    chosen = write(tmp_path / "ids.txt", "".join(f"{youtube(i)}\n" for i in (0, 1, 2, 3, 4, 5, 77)))
    plan = plan_composite(
        kinetics=[local / "train.csv"],
        kinetics_videos=[local / "k400"],
        minikinetics=[chosen],
        test_fraction=0,
        val_fraction=0.5,
    )
    assert plan.listed == {"minikinetics": 7} and plan.left_out == 14
    assert [bad.source for bad in plan.missing] == [
        f"minikinetics/{youtube(4)}_000004_000014",
        f"minikinetics/{youtube(77)}",
    ]
    # Without the CSV, labels and times come from the folders and the names of the files.
    alone = plan_composite(kinetics_videos=[local / "k400"], minikinetics=[chosen])
    labels = {s.path[-3:]: s.label for split in alone.plan.splits.values() for s in split}
    assert labels["001"] == "petting animal (not cat)" and labels["000"] == ""
    assert {split: len(sources) for split, sources in plan.plan.splits.items()} == {
        "train": 4,
        "val": 1,
    }


def test_the_same_clip_twice(local, tmp_path):
    again = write(tmp_path / "again.csv", HEAD + f"Cycling,{youtube(0)},0,10,train,0\n")
    plan = plan_composite(kinetics=[local / "train.csv", again], kinetics_videos=[local / "k400"])
    assert plan.repeated == {"kinetics": 1}
    part = plan.parts[f"kinetics/{youtube(0)}_000000_000010"]
    assert part.meta["labels"] == ["riding a bike", "cycling"]
    assert "cycling" not in plan.class_splits and plan.plan.classes[-1] == "cycling"


def test_tinyvirat_files_of_two_splits(tmp_path, clips):
    for split in ("train", "val"):
        write(tmp_path / "videos" / split / "VIRAT_1" / "000000.mp4", clips[0])
    files = VideoFiles([tmp_path / "videos"])
    for split in ("train", "val"):
        clip = Listed("tinyvirat", f"tiny_{split}_v2/VIRAT_1/000000", (), "VIRAT_1/000000.mp4")
        assert files.find(clip)[0].endswith(f"{split}/VIRAT_1/000000.mp4")
    with pytest.raises(DataError, match="2 files have this path"):
        files.find(Listed("tinyvirat", "all/VIRAT_1/000000", (), "VIRAT_1/000000.mp4"))


def test_which_file_of_several(tmp_path, clips):
    name = f"{youtube(0)}_000003_000013.mp4"
    for folder in ("juggling", "tap_dancing", "train"):
        write(tmp_path / folder / name, clips[0])
    write(tmp_path / "tap_dancing" / f"{youtube(1)}.mp4", clips[0])
    files = VideoFiles([tmp_path])
    clip = Listed("kinetics", name[:-4], ("tap dancing",), youtube(0), (3.0, 13.0))
    assert files.find(clip) == (str(tmp_path / "tap_dancing" / name), None, "")
    with pytest.raises(DataError, match="missing; other clips of the same video are there"):
        files.find(clip._replace(seconds=(4.0, 14.0)))
    with pytest.raises(DataError, match="its times are not known; give the Kinetics CSV"):
        files.find(Listed("minikinetics", youtube(1), (), youtube(1)))
