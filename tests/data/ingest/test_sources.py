from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stmeta._errors import DataError
from stmeta.data.ingest.sharding import ingest
from stmeta.data.ingest.sources import plan_sources
from stmeta.data.shards.writer import ShardIndex


@pytest.fixture(scope="module")
def clips(make_video) -> list[bytes]:
    return [make_video(i, frames=16) for i in range(2)]


def test_splits_from_folders_and_no_labels(clips, tmp_path):
    for name in ("train/a/1.mp4", "train/b/2.mp4", "valid/a/3.mp4"):
        path = tmp_path / "split" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clips[0])
    plan = plan_sources(tmp_path / "split")
    assert {name: len(found) for name, found in plan.splits.items()} == {"train": 2, "val": 1}
    assert plan.classes == ["a", "b"]
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.mp4").write_bytes(clips[0])
    report = ingest(tmp_path / "flat", tmp_path / "out", workers=1)
    assert report.bad == [] and report.classes == []
    assert ShardIndex.open(tmp_path / "out" / "train").labels.tolist() == [-1]


def test_classes_that_are_trained_come_first(tmp_path):
    """A head that counts the labels of train then has no output for what is held out."""
    for name in ("train/b/1.mp4", "train/d/2.mp4", "val/c/3.mp4", "heldout/a/4.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert plan_sources(tmp_path).classes == ["b", "d", "a", "c"]


def test_val_fraction_is_stratified_and_seeded(tmp_path):
    for name, count in (("many", 40), ("few", 5), ("pair", 2), ("one", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.mp4").touch()
    plan = plan_sources(tmp_path, val_fraction=0.2, seed=1)
    counts = Counter(source.label for source in plan.splits["val"])
    assert counts == {"many": 8, "few": 1, "pair": 1}
    assert Counter(s.label for s in plan.splits["train"])["one"] == 1
    assert plan_sources(tmp_path, val_fraction=0.2, seed=1) == plan
    other = plan_sources(tmp_path, val_fraction=0.2, seed=2)
    assert set(other.splits["val"]) != set(plan.splits["val"])
    labels = [source.label for source in plan.splits["train"][:16]]
    assert len(set(labels)) > 1  # mixed, not class by class
    with pytest.raises(ValueError, match="below 1"):
        plan_sources(tmp_path, val_fraction=1)


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return path


@pytest.fixture
def files(tmp_path) -> Path:
    root = tmp_path / "videos"
    for name in ("x/1.mp4", "y/1.mp4", "y/deep/2.v2.webm", "3.avi"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_annotation_paths(files, tmp_path):
    path = table(
        tmp_path / "a.csv",
        "id,FileName,comment,Label",
        "0,y/deep/2.v2.webm,exact,a",
        "1,3.npy,another extension,b",
        "2,elsewhere/1.mov,the folder is the label,x",
        f"3,{files}/y/1.mp4,absolute,c",
    )
    plan = plan_sources(files, [str(path)])
    assert plan.bad == []
    assert {(s.path, s.label) for s in plan.splits["train"]} == {
        ("y/deep/2.v2.webm", "a"),
        ("3.avi", "b"),
        ("x/1.mp4", "x"),
        ("y/1.mp4", "c"),
    }
    assert plan.classes == ["a", "b", "c", "x"]


def test_bad_annotation_rows_are_listed(files, tmp_path):
    path = table(
        tmp_path / "a.csv",
        "video;class",
        "1.mp4;z",
        "nowhere.mp4;z",
        ";z",
        "2.v2;z",
        "../../etc/passwd;z",
        "y/deep/2.v2.webm;z",
    )
    plan = plan_sources(files, [f"val={path}"])
    assert plan.splits == {"val": [("y/deep/2.v2.webm", "z")]}
    reasons = {bad.source: bad.reason for bad in plan.bad}
    assert "several files have this name: x/1.mp4, y/1.mp4" == reasons["1.mp4 (a.csv, line 2)"]
    assert reasons["nowhere.mp4 (a.csv, line 3)"] == "the file is missing"
    assert reasons[" (a.csv, line 4)"] == "the path is empty"
    assert reasons["../../etc/passwd (a.csv, line 6)"] == "the file is missing"
    assert "listed already, in val" in reasons["y/deep/2.v2.webm"]


def test_annotation_columns(files, tmp_path):
    path = table(tmp_path / "a.csv", "where\tkind", "3.avi\t10", "x/1.mp4\t9")
    with pytest.raises(DataError, match=r"none of the columns where, kind .* --path-column"):
        plan_sources(files, [str(path)])
    options = {"path_column": "where", "label_column": "kind"}
    assert plan_sources(files, [str(path)], **options).classes == ["9", "10"]
    with pytest.raises(DataError, match="--label-column"):
        plan_sources(files, [str(path)], path_column="where", label_column="nothing")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        plan_sources(files, [str(tmp_path / "none.csv")])
    with pytest.raises(DataError, match="there are no videos"):
        (tmp_path / "empty").mkdir()
        plan_sources(tmp_path / "empty")
    with pytest.raises(ValueError, match="it has one"):
        plan_sources(files, [f"val={path}"], val_fraction=0.5, **options)
