from __future__ import annotations

import json
import math
import threading
from collections import Counter

import numpy as np
import pytest

from stmeta.data.datasets import motions
from stmeta.data.datasets._draw import draw_clip
from stmeta.data.datasets._paths import HELD_OUT, MOTIONS
from stmeta.data.shards.writer import ShardIndex
from tests.data._videos import decode

T = np.arange(24, dtype=np.float64)


def tracks(name: str, seed: int) -> list[dict[str, np.ndarray]]:
    found = MOTIONS[name](np.random.default_rng(seed), T)
    return [
        {key: np.broadcast_to(value, 24).astype(float) for key, value in track._asdict().items()}
        for track in found
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Built by two threads at once: one of them builds, the other waits."""
    root, paths, drawn = tmp_path_factory.mktemp("cache"), [], []

    def build() -> None:
        progress = lambda *state: drawn.append(state)  # noqa: E731
        paths.append(motions.build(root, size="tiny", workers=1, progress=progress))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths[0] == paths[1] and len(drawn) == 16 * 6 + 16 * 2 + 8 * 6
    return paths[0]


def test_data_set(tiny):
    assert json.loads((tiny / "classes.json").read_text()) == list(motions.CLASSES)
    assert len(motions.CLASSES) == 24 and HELD_OUT == 8
    for split, labels, clips in (("train", range(16), 6), ("val", range(16), 2)):
        index = ShardIndex.open(tiny / split)
        assert Counter(index.labels.tolist()) == dict.fromkeys(labels, clips)
    heldout = ShardIndex.open(tiny / "heldout", details=True)
    assert Counter(heldout.labels.tolist()) == dict.fromkeys(range(16, 24), 6)
    row = heldout.row(0)
    assert (row.frames, row.width, row.height, row.fps, row.codec) == (24, 72, 72, 12, "h264")
    assert row.keyframes == (0, 8, 16) and heldout.classes[row.label] in row.key


def test_clips_are_drawn_the_same_every_time(tiny):
    index = ShardIndex.open(tiny / "train")
    label = int(index.labels[3])
    job = motions._Job(label, 0, (0, 0, label, 0))
    assert motions._draw(job).video == index.read(3)
    assert len({index.read(i) for i in range(len(index))}) == len(index)
    frames = draw_clip(
        MOTIONS[motions.CLASSES[label]], np.random.default_rng(job.seed), frames=24, size=72
    )
    assert np.abs(decode(index.read(3)).astype(int) - frames).mean() < 8


def test_built_once(tiny, monkeypatch):
    monkeypatch.setattr(motions, "write_shards", lambda *_, **__: pytest.fail("built again"))
    assert motions.build(tiny.parent, size="tiny") == tiny
    monkeypatch.setenv("STMETA_CACHE", str(tiny.parent))
    assert motions.build(size="tiny") == tiny


def test_a_failed_build_leaves_nothing_that_counts(tmp_path, monkeypatch):
    def fail(samples, out, **_):
        if out.name == "val":
            raise KeyboardInterrupt
        out.mkdir()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(motions, "write_shards", fail)
        motions.build(tmp_path, size="tiny", workers=1)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    calls = []
    monkeypatch.setattr(motions, "write_shards", lambda _, out, **__: calls.append(out.name))
    assert motions.build(tmp_path, size="tiny", workers=1).is_dir()
    assert calls == ["train", "val", "heldout"]
    with pytest.raises(ValueError, match="size must be one of full, tiny"):
        motions.build(tmp_path, size="huge")


@pytest.mark.parametrize("seed", range(5))
def test_motions_are_what_they_are_called(seed):
    for name, degrees in {
        "move_right": 0,
        "move_down": 90,
        "move_left": 180,
        "move_up": 270,
        "move_up_right": 315,
        "move_down_left": 135,
    }.items():
        (track,) = tracks(name, seed)
        dx, dy = track["x"][-1] - track["x"][0], track["y"][-1] - track["y"][0]
        assert math.hypot(dx, dy) > 72 / 3
        assert math.degrees(math.atan2(dy, dx)) % 360 == pytest.approx(degrees)
    for name, sign in {"rotate_clockwise": 1, "rotate_counterclockwise": -1}.items():
        (track,) = tracks(name, seed)
        assert sign * (track["angle"][-1] - track["angle"][0]) > np.radians(120)
    for name, sign in {"zoom_in": 1, "zoom_out": -1}.items():
        (track,) = tracks(name, seed)
        assert sign * np.log(track["scale"][-1] / track["scale"][0]) > np.log(2)
    for name, sign in {"orbit_clockwise": 1, "orbit_counterclockwise": -1}.items():
        (track,) = tracks(name, seed)
        # Twice the area that the path sweeps; y points down, so clockwise is positive.
        area = np.sum(track["x"][:-1] * np.diff(track["y"]) - track["y"][:-1] * np.diff(track["x"]))
        assert sign * area > 200
    for name, sign in {"meet": -1, "part": 1}.items():
        one, two = tracks(name, seed)
        gap = np.hypot(one["x"] - two["x"], one["y"] - two["y"])
        assert np.all(sign * np.diff(gap) > 0) and abs(gap[-1] - gap[0]) > 24
    one, two = tracks("swap", seed)
    assert np.hypot(one["x"][0] - two["x"][-1], one["y"][0] - two["y"][-1]) < 8
    for name, axis, other in (("shake_sideways", "x", "y"), ("shake_up_down", "y", "x")):
        (track,) = tracks(name, seed)
        assert np.ptp(track[axis]) > 10 and np.ptp(track[other]) == 0

    def changes(name: str) -> int:
        return int(np.count_nonzero(np.diff(tracks(name, seed)[0]["opacity"])))

    assert 3 <= changes("blink_slowly") <= 5 < 8 <= changes("blink_fast")
    (track,) = tracks("pause", seed)
    steps = np.hypot(np.diff(track["x"]), np.diff(track["y"]))
    assert np.count_nonzero(steps[8:15] == 0) >= 5 and steps[0] > 0 and steps[-1] > 0


@pytest.mark.parametrize(("frame", "limit"), [(12, 2.5), (0, 4)])
def test_a_single_frame_does_not_give_the_class_away(frame, limit):
    """Nearest class mean of single frames is near chance (1/16); a path's end says a little."""

    def frames(clips: range) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = [], []
        for label, name in enumerate(motions.CLASSES[:-HELD_OUT]):
            for clip in clips:
                rng = np.random.default_rng((5, label, clip))
                (picture,) = draw_clip(
                    MOTIONS[name], rng, frames=24, size=72, frame_indices=[frame]
                )
                gray = picture.mean(2)
                # Where the shapes are, not which colours the clip has.
                pictures.append(np.abs(gray - np.median(gray))[::3, ::3].ravel())
                labels.append(label)
        return np.array(pictures), np.array(labels)

    (train, train_labels), (test, labels) = frames(range(32)), frames(range(32, 52))
    means = np.array([train[train_labels == label].mean(0) for label in range(16)])
    distance = ((test[:, None] - means) ** 2).sum(2)
    accuracy = np.mean(distance.argmin(1) == labels)
    assert accuracy < limit / 16


def test_preview(tmp_path):
    motions.preview(tmp_path / "preview.png", num_frames=2)
    assert (tmp_path / "preview.png").stat().st_size > 20_000
