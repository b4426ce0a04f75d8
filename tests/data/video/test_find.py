"""Which videos of a folder are taken, as which class of which split; what is left out is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stmeta._errors import DataError
from stmeta.cli import main
from stmeta.data.ingest.sources import plan_sources
from stmeta.data.video.find import find_videos


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


SPLITS = ("train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4")


@pytest.mark.parametrize("stray", ["stray.mp4", "extra/4.mp4", "extra/c/4.mp4"])
def test_splits_beside_something_else(tmp_path, stray):
    plan = plan_sources(touch(tmp_path, *SPLITS, stray))
    assert {name: len(found) for name, found in plan.splits.items()} == {"train": 2, "val": 1}
    assert plan.classes == ["a", "b"]
    assert [bad.source for bad in plan.bad] == [stray.partition("/")[0]]
    assert "1 video(s) left out, beside the splits train, val" in plan.bad[0].reason


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("training", "validation", "testing"), {"train", "val", "test"}),
        (("Train", "Val", "Test"), {"train", "val", "test"}),
        (("train", "dev", "held_out"), {"train", "val", "heldout"}),
    ],
)
def test_names_of_splits(tmp_path, names, expected):
    plan = plan_sources(touch(tmp_path, *(f"{name}/a/1.mp4" for name in names), "x.mp4"))
    assert set(plan.splits) == expected and plan.classes == ["a"]


def test_splits_without_classes(tmp_path):
    plan = plan_sources(touch(tmp_path, "train/1.mp4", "val/2.mp4", "train/a/3.mp4"))
    assert {s.path: s.label for part in plan.splits.values() for s in part} == {
        "train/1.mp4": "",
        "train/a/3.mp4": "a",
        "val/2.mp4": "",
    }


def test_a_class_may_be_called_train(tmp_path):
    plan = plan_sources(touch(tmp_path, "train/1.mp4", "bus/2.mp4", "train/old/3.mp4"))
    assert list(plan.splits) == ["train"] and plan.classes == ["bus", "train"] and plan.bad == []


def test_linked_folders(tmp_path):
    """A linked class is a class; a loop and a folder that comes twice are named."""
    elsewhere = touch(tmp_path / "elsewhere", "1.mp4", "deep/2.mp4")
    root = touch(tmp_path / "videos", "b/3.mp4")
    (root / "a").symlink_to(elsewhere)
    (root / "b" / "loop").symlink_to(root)
    (root / "c").symlink_to(elsewhere)
    (root / "d").symlink_to(tmp_path / "nowhere")
    plan = plan_sources(root)
    assert {(s.path, s.label) for s in plan.splits["train"]} == {
        ("a/1.mp4", "a"),
        ("a/deep/2.mp4", "a"),
        ("b/3.mp4", "b"),
    }
    assert {bad.source: bad.reason for bad in plan.bad} == {
        "b/loop": "a link to what is there already: the folder itself",
        "c": "a link to what is there already: a",
        "d": "a link that leads nowhere",
    }


def test_a_folder_of_many_links_ends(tmp_path):
    """Two links to the next level at each of 40: 2^40 paths, 40 folders."""
    for level in range(40):
        (tmp_path / f"l{level}").mkdir()
        for name in "ab":
            (tmp_path / f"l{level}" / name).symlink_to(tmp_path / f"l{level + 1}")
    touch(tmp_path, "l40/x.mp4")
    assert len(find_videos(tmp_path)) == 1


@pytest.mark.parametrize(
    "ending", ["3g2", "m2ts", "asf", "264", "hevc", "vob", "mxf", "GIF", "h265", "ivf"]
)
def test_endings(tmp_path, ending):
    assert find_videos(touch(tmp_path, f"a/1.{ending}")) == [f"a/1.{ending}"]


def test_what_is_no_video_by_its_name(tmp_path):
    root = touch(tmp_path / "v", "a/1.mp4", "a/2.dav", "a/3.dav", "a/README", "a/.hidden.txt")
    plan = plan_sources(root)
    assert dict(plan.others) == {".dav": (2, "a/3.dav"), "no ending": (1, "a/README")}
    table = tmp_path / "list.csv"
    table.write_text("path,label\na/1.mp4,x\na/2.dav,y\n3.dav,y\n")
    plan = plan_sources(root, [str(table)])  # whoever lists it means it
    assert plan.bad == [] and len(plan.splits["train"]) == 3 and list(plan.others) == ["no ending"]
    with pytest.raises(DataError, match=r"there are no videos .*; found \.txt"):
        find_videos(touch(tmp_path / "none", "x.txt"))


LISTS = {
    "VideoMAE": "a/1.mp4 0\nb/2 x.mp4 1\n",
    "with commas": "a/1.mp4,0\nb/2 x.mp4,1\n",
    "with tabs": "a/1.mp4\t0\r\nb/2 x.mp4\t1\r\n",
    "stems, as mmaction2": "a/1 0\n\nb/2 x 1\n",
    "absolute": "{root}/a/1.mp4 0\n{root}/b/2 x.mp4 1\n",
    "a header, spaces": "path label\na/1.mp4 0\nb/2 x.mp4 1\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_without_a_header(tmp_path, kind):
    root = touch(tmp_path / "v", "a/1.mp4", "b/2 x.mp4")
    (tmp_path / "train.txt").write_text(LISTS[kind].format(root=root))
    plan = plan_sources(root, [str(tmp_path / "train.txt")])
    assert plan.bad == [] and plan.classes == ["0", "1"]
    assert {(s.path, s.label) for s in plan.splits["train"]} == {
        ("a/1.mp4", "0"),
        ("b/2 x.mp4", "1"),
    }


def test_lists_that_are_not_understood(tmp_path):
    root = touch(tmp_path / "v", "a/1.mp4", "b/2 x.mp4")
    path = tmp_path / "list.txt"
    path.write_text("a/1.mp4\nb/2 x.mp4\nnone.mp4\n")
    plan = plan_sources(root, [str(path)])
    assert [s.label for s in plan.splits["train"]] == ["", ""]
    assert [bad.source for bad in plan.bad] == ["none.mp4 (list.txt, line 3)"]
    path.write_text("a/1.mp4 0\nb/2 x.mp4 1 7\n")
    with pytest.raises(DataError, match=r"list.txt, line 2: .* a path and a label, got 3 fields"):
        plan_sources(root, [str(path)])
    path.write_text("label,youtube_id,time_start,time_end,split\nx,abc,0,10,train\n")
    with pytest.raises(DataError, match="stmeta dataset composite --kinetics"):
        plan_sources(root, [str(path)])


def test_the_command_names_what_it_leaves_out(make_video, tmp_path, capsys):
    root = touch(tmp_path / "v", "train/a/notes.txt")
    for name in (*SPLITS, "x.mp4"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_video(0, frames=8))
    arguments = ["shard", os.fspath(root), "--out", os.fspath(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    printed = capsys.readouterr().out
    assert left.value.code == 1 and "x.mp4: 1 video(s) left out, beside" in printed
    assert "not those of videos: 1 .txt (train/a/notes.txt)" in printed
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b"]
