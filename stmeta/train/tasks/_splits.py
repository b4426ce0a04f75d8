"""What can be known to be wrong with the splits of a data set before the first step of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from stmeta._errors import DataError
from stmeta.data.loading.bad_samples import bad_in_index, check_error_rate
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.shards.classes import trained_classes
from stmeta.data.shards.index import ShardIndex
from stmeta.models.classifier import VideoClassifier
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._clips import data_root, encoder_config, load_encoder

_log = logging.getLogger("stmeta.train")


def check_split(context: TaskContext, split: str, made: LoaderConfig) -> ShardIndex:
    """Open a split and sample its clips as the task will.

    Args:
        context: of the task.
        split: name of a folder of the data set.
        made: of the loader.

    Raises:
        DataError: the split is missing, empty, or too much of it is bad.
        ValueError: a setting does not fit the split.
    """
    index = context.once(("index", split), lambda: _open(context, split))
    sampler = made.sampler(index)
    bad = bad_in_index(index)
    check_error_rate(str(index.root), bad, len(index) + len(bad), made.max_error_rate)
    short = int((index.frames < sampler.span).sum())
    if made.fps is None and short:
        _warn(
            context,
            f"{index.root}: {short} of {len(index)} videos are shorter than a clip: "
            f"{made.frames} frames at stride {made.stride} span {sampler.span}; they hold their "
            "last frame; lower --model.frames or --clip.stride if that is not meant",
        )
    if made.train and len(index) * made.repeats < made.batch_size:
        _warn(
            context,
            f"{index.root}: {len(index)} videos are fewer than a batch of "
            f"{made.batch_size} holds: they come more than once in it; lower "
            f"{context.flag('batch-size')} if that is not meant",
        )
    return index


def check_classes(context: TaskContext, train: ShardIndex, val: ShardIndex) -> None:
    """Check that there are classes to learn, and labels of them to validate on.

    Raises:
        DataError: there are not.
    """
    labels, names = trained_classes(train.labels, train.classes)
    if len(labels) < 2:
        raise DataError(
            f"data: {context.name} needs samples of at least 2 classes, and {train.root} has "
            f"{len(labels)} ({', '.join(names) or 'no labels'}); label the videos by folder or "
            "with --annotations and shard them again, or leave the task out with --stage"
        )
    known = np.isin(val.labels, labels)
    other = {val.classes[i] for i in np.unique(val.labels[~known & (val.labels >= 0)])}
    if not known.any():
        found = f"classes {', '.join(sorted(other))}" if other else "no labels"
        raise DataError(
            f"data: {context.name} is validated on the classes of {train.root}, and {val.root} has "
            f"{found}; label its videos and shard them again, or leave the task out with --stage"
        )
    if other:
        count = int((~known & (val.labels >= 0)).sum())
        _warn(
            context,
            f"{val.root}: {count} videos are of classes that {train.root} has not "
            f"({', '.join(sorted(other))}): they count in no figure",
        )


def check_weights(context: TaskContext, field: str, source: str) -> None:
    """Check the weights that a task begins with: an earlier one makes them, or they are there.

    Args:
        context: of the task.
        field: of its config, which names the source.
        source: the task whose encoder it is, or "scratch".

    Raises:
        DataError: they are not there, or do not fit the model.
    """
    done = context.order[: context.order.index(context.name)]
    if source == "scratch" or source in done:
        return
    path, flag = context.folder / source / "last.safetensors", context.flag(field)
    if not path.exists():
        late = source in context.order
        remedy = f"put {source} before {context.name}" if late else f"run the task {source!r} first"
        raise DataError(
            f"weights: {context.name} begins with those of {source}, and {path} is missing; "
            f"{remedy} (--stage), or start from random weights with {flag} scratch"
        )
    load_encoder(VideoClassifier(encoder_config(context), num_classes=1), path, flag)


def _open(context: TaskContext, split: str) -> ShardIndex:
    data = data_root(context)
    root = data / split
    if not root.is_dir():
        if any(data.glob("*.tar")):
            raise DataError(
                f"data: --data must be the folder that holds the splits, and {data} "
                f"holds shards itself; did you mean --data {Path(data).absolute().parent}?"
            )
        raise DataError(
            f"data: {context.name} needs the split {split!r}, and {data} has none; make it "
            "with `stmeta shard` (see --val-fraction), or leave the task out with --stage"
        )
    index = ShardIndex.open(root)
    if len(index) == 0:
        reasons = "; ".join(sorted({bad.error for bad in index.bad}))
        raise DataError(
            f"data: {context.name} needs videos, and none of {len(index.bad)} samples of {root} "
            f"is good: {reasons or 'there are none'}"
        )
    return index


def _warn(context: TaskContext, line: str) -> None:
    context.once(("warned", line), lambda: _log.warning("%s", line) or True)
