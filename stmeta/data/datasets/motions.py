"""`motions`: short drawn clips of 24 kinds of motion that no single frame gives away.

16 classes to learn from (splits train and val) and 8 held out (split heldout) that are new motions
of the same kinds, for few-shot learning. 24 frames of 72×72 pixels, 12 frames per second, H.264.
Made on this machine in under a minute; the same arguments give the same clips.

    stmeta dataset motions
    python -m stmeta.data.datasets.motions
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from filelock import FileLock

from stmeta._errors import DataError
from stmeta._util.cache_folder import cache_folder
from stmeta._util.workers import ordered_map
from stmeta.data.datasets._draw import draw_clip
from stmeta.data.datasets._paths import HELD_OUT, MOTIONS
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.shards.writer import EncodedSample, write_shards
from stmeta.data.video.probe import probe

FRAMES, SIZE, FPS = 24, 72, 12
CLASSES = tuple(MOTIONS)
"""Names of the classes; the position is the label. The last `HELD_OUT` are in heldout only."""
_VERSION = 2  # change it with anything that changes the clips: the folder's name follows
_CLIPS = {
    "full": {"train": 100, "val": 20, "heldout": 40},
    "tiny": {"train": 6, "val": 2, "heldout": 6},
}


def build(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Literal["full", "tiny"] = "full",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str, int, int, int], None] | None = None,
) -> Path:
    """Make the data set, unless it is there already.

    It appears complete or not at all: a build that is killed leaves nothing that counts, and of two
    at once the second waits for the first.

    Args:
        root: folder in which the data set's own folder lies; None = the user's cache
            ($STMETA_CACHE, or stmeta in $XDG_CACHE_HOME or ~/.cache).
        size: "full" = 100 train, 20 val and 40 held-out clips per class; "tiny" = a few.
        seed: of all that is random.
        workers: processes; None = one per core.
        progress: called with split, clips done, clips in all, 0.

    Returns:
        Folder with classes.json, train/, val/ and heldout/.

    Raises:
        ValueError: there is no such size.
    """
    if size not in _CLIPS:
        raise ValueError(f"motions: size must be one of {', '.join(_CLIPS)}, got {size!r}")
    recipe = [_VERSION, FRAMES, SIZE, FPS, seed, _CLIPS[size], CLASSES]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
    root = Path(root) if root is not None else cache_folder()
    folder = root / f"motions-{size}-v{_VERSION}-{digest}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f".{folder.name}.tmp"
    with FileLock(root / f".{folder.name}.lock"):
        if not folder.is_dir():
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            partial.mkdir()
            for number, (split, clips) in enumerate(_CLIPS[size].items()):
                jobs = _jobs(split, clips, (seed, number))
                samples = _samples(jobs, split, workers or len(os.sched_getaffinity(0)), progress)
                write_shards(samples, partial / split, classes=CLASSES)
            os.replace(partial, folder)
    return folder


class _Job(NamedTuple):
    label: int
    number: int
    seed: tuple[int, ...]


def _jobs(split: str, clips: int, seed: tuple[int, ...]) -> list[_Job]:
    """Classes in turn, so that every part of a shard holds all of them."""
    known = len(CLASSES) - HELD_OUT
    labels = range(known, len(CLASSES)) if split == "heldout" else range(known)
    return [
        _Job(label, number, (*seed, label, number)) for number in range(clips) for label in labels
    ]


def _draw(job: _Job) -> EncodedSample:
    name = CLASSES[job.label]
    clip = draw_clip(MOTIONS[name], np.random.default_rng(job.seed), frames=FRAMES, size=SIZE)
    video = encode_frames(clip, FPS, gop=8, crf=22)
    return EncodedSample(
        key=f"{name}_{job.number:03d}",
        video=video,
        extension="mp4",
        label=job.label,
        label_text=name,
        source="drawn",
        info=probe(video),
    )


def _samples(
    jobs: list[_Job],
    split: str,
    workers: int,
    progress: Callable[[str, int, int, int], None] | None,
) -> Iterator[EncodedSample]:
    for done, (_, sample) in enumerate(ordered_map(_draw, jobs, workers), 1):
        if isinstance(sample, DataError):
            raise sample
        if progress:
            progress(split, done, len(jobs), 0)
        yield sample


def preview(path: str | os.PathLike[str], *, seed: int = 0, num_frames: int = 8) -> None:
    """Save a picture with one clip per class, a row each.

    Args:
        path: file to write, such as preview.png.
        seed: of the clips.
        num_frames: frames of each clip, spread over its length.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * num_frames, len(CLASSES) * 0.55), layout="compressed")
    rows = (len(CLASSES) + 1) // 2
    axes = figure.subplots(rows, 2, squeeze=False)
    for label, name in enumerate(CLASSES):
        rng = np.random.default_rng((seed, label))
        frames = np.linspace(0, FRAMES - 1, num_frames).round().astype(int).tolist()
        clip = draw_clip(MOTIONS[name], rng, frames=FRAMES, size=SIZE, frame_indices=frames)
        chosen = np.pad(clip, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        axis = axes[label % rows, label // rows]
        axis.imshow(np.concatenate(list(chosen), 1))
        axis.set_title(name, fontsize=8, loc="left", pad=2)
        axis.set_axis_off()
    figure.savefig(os.fspath(path), dpi=110)


if __name__ == "__main__":
    from stmeta._util.progress import ProgressBar

    with ProgressBar() as bar:
        print(build(progress=bar))
