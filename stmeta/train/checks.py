"""What can be known to be wrong before the first step of a run: settings, data, weights, state.

For all stages at once: a mistake in the last of them must not show after hours of the first.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stmeta._errors import DataError
from stmeta.data.episodes.clips import EpisodeSampler
from stmeta.data.loading.bad_samples import bad_in_index, check_error_rate
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.shards.classes import trained_classes
from stmeta.data.shards.index import ShardIndex
from stmeta.models.classifier import VideoClassifier
from stmeta.train import checkpoint
from stmeta.train.config import ClassifyConfig, MemoryConfig, RunConfig, TrainConfig
from stmeta.train.run_folder import read_config

_log = logging.getLogger("stmeta.train")

_LEAST = {
    **dict.fromkeys(("save_every", "batch_size", "evals", "views", "instances", "episodes"), 1),
    **dict.fromkeys(("test_episodes", "repeats", "threads", "stride", "steps", "bits"), 1),
    **dict.fromkeys(("max_length", "image_size", "dim", "depth", "heads", "head_dim"), 1),
    **dict.fromkeys(("hidden", "rows", "width", "reads", "read_heads", "write_heads"), 1),
    **dict.fromkeys(("in_chans", "lstm_hidden"), 1),
    **dict.fromkeys(("max_steps", "prefetch", "cache_mib", "clip_grad", "weight_decay"), 0),
    **dict.fromkeys(("min_lr", "mixup", "matching", "shift", "rotation"), 0),
    "ways": 2,
}
"""Least value of a field of that name, in any of the configs."""

_INSIDE: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        ("mask_ratio", "label_smoothing", "drop_path", "dropout", "betas"),
        ("in [0, 1)", lambda v: 0 <= v < 1),
    ),
    **dict.fromkeys(("epochs", "lr", "mlp_ratio", "std"), ("above 0", lambda v: v > 0)),
    **dict.fromkeys(("warmup", "max_error_rate", "hflip"), ("in [0, 1]", lambda v: 0 <= v <= 1)),
    **dict.fromkeys(("layer_decay", "decay"), ("in (0, 1]", lambda v: 0 < v <= 1)),
    **dict.fromkeys(("filters", "encoder", "test_lengths"), ("above 0", lambda v: v > 0)),
}


def check_settings(config: RunConfig) -> None:
    """Check what every field says for itself.

    Raises:
        ValueError: a value is out of range; its flag is named.
    """
    for flag, name, value in _fields(config, "--"):
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                continue
            rule, holds = "a finite number", math.isfinite(item)
            if name in _LEAST and holds:
                rule, holds = f"{_LEAST[name]} or more", item >= _LEAST[name]
            if name in _INSIDE and holds:
                rule, holds = _INSIDE[name][0], _INSIDE[name][1](item)
            if not holds:
                raise ValueError(f"{flag} must be {rule}, got {value}")
    if not getattr(config, "test_lengths", (1,)):
        raise ValueError("--test-lengths must name at least one length, got none")


def _fields(config: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Flag, name and value of every field, also of the configs inside."""
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{flag}.")
        else:
            yield flag, field.name, value


def check_state(config: RunConfig, stages: tuple[str, ...]) -> None:
    """Check the checkpoints that a resumed run goes on from, each for itself.

    Raises:
        DataError: one is damaged, or the run was of another model.
    """
    before = read_config(config.folder)
    if type(before) is not type(config):
        raise DataError(
            f"--resume: the run in {config.folder} is of recipe {before.recipe!r}, which trains "
            f"something else than {config.recipe!r}; go on with --resume {config.folder} alone, "
            "or train into another --out"
        )
    same: dict[str, tuple[Any, Any]] = {}
    if isinstance(before, MemoryConfig) and isinstance(config, MemoryConfig):
        names = ("task", "memory", "ways", "instances", "bits", "image_size", "mann", "ntm", "dnc")
        names += ("lstm_hidden", "filters", "encoder")
        same = {f"--{n.replace('_', '-')}": (getattr(before, n), getattr(config, n)) for n in names}
    if isinstance(before, TrainConfig) and isinstance(config, TrainConfig):
        same = {
            "--model": (before.model, config.model),
            "--fewshot.head": (before.fewshot.head, config.fewshot.head),
            "--fewshot.ways": (before.fewshot.ways, config.fewshot.ways),
        }
    for flag, (was, now) in same.items():
        if was != now:
            raise DataError(
                f"--resume: the run in {config.folder} was begun with another {flag} "
                f"({_changes(was, now)}); leave it as it was, or train into another --out"
            )
    for name in stages:
        path = config.folder / name / "last.pt"
        if path.exists():
            checkpoint.load_state(path)


def _changes(was: Any, now: Any) -> str:
    if not dataclasses.is_dataclass(was):
        return f"{was}, now {now}"
    pairs = {f.name: (getattr(was, f.name), getattr(now, f.name)) for f in dataclasses.fields(was)}
    return ", ".join(f"{name} {a}, now {b}" for name, (a, b) in pairs.items() if a != b)


class StageChecks:
    """Checks of the stages of a `TrainConfig` against its data and the weights that are there."""

    def __init__(self, config: TrainConfig, data: Path) -> None:
        """Check nothing yet."""
        self.config, self.data = config, data
        self._opened: dict[str, ShardIndex] = {}
        self._said: set[str] = set()

    def run(self, loader_config: Callable[..., LoaderConfig]) -> None:
        """Check all stages, in their order.

        Args:
            loader_config: makes the config of a loader, from batch_size, train and views.

        Raises:
            DataError: a split, its labels, or weights are missing.
            ValueError: a setting does not fit the data.
        """
        config = self.config
        if not config.stage or len(set(config.stage)) < len(config.stage):
            raise ValueError(
                f"--stage must name at least one stage, and each once, got {list(config.stage)}"
            )
        for place, name in enumerate(config.stage):
            done = config.stage[:place]
            if name == "fewshot":
                size, settings = config.classify.batch_size, config.fewshot
                for split, train in (("train", True), ("heldout", False)):
                    made = loader_config(batch_size=size, train=train, views=1)
                    self._episodes(split, self._plan(name, split, made))
                self._weights(name, "--fewshot.encoder", settings.encoder, done)
                continue
            settings = getattr(config, name)
            views = settings.views if isinstance(settings, ClassifyConfig) else 1
            indices = [
                self._plan(name, split, loader_config(batch_size=settings.batch_size, **how))
                for split, how in (
                    ("train", {"train": True, "views": 1}),
                    ("val", {"train": False, "views": views}),
                )
            ]
            if isinstance(settings, ClassifyConfig):
                self._classes(name, *indices)
                self._weights(name, f"--{name}.init".replace("_", "-"), settings.init, done)

    def _plan(self, stage: str, split: str, made: LoaderConfig) -> ShardIndex:
        """Open a split and plan its clips as the stage will."""
        index = self._open(stage, split)
        plan = made.sampler(index)
        bad = bad_in_index(index)
        check_error_rate(str(index.root), bad, len(index) + len(bad), made.max_error_rate)
        short = int((index.frames < plan.span).sum())
        if made.fps is None and short:
            self._say(
                f"{index.root}: {short} of {len(index)} videos are shorter than a clip: "
                f"{made.frames} frames at stride {made.stride} span {plan.span}; they hold their "
                "last frame; lower --model.frames or --clip.stride if that is not meant"
            )
        if made.train and len(index) * made.repeats < made.batch_size:
            self._say(
                f"{index.root}: {len(index)} videos are fewer than a batch of "
                f"{made.batch_size} holds: they come more than once in it; lower "
                f"--{stage}.batch-size if that is not meant"
            )
        return index

    def _open(self, stage: str, split: str) -> ShardIndex:
        if split not in self._opened:
            root = self.data / split
            if not root.is_dir():
                if any(self.data.glob("*.tar")):
                    raise DataError(
                        f"data: --data must be the folder that holds the splits, and {self.data} "
                        f"holds shards itself; did you mean --data {self.data.absolute().parent}?"
                    )
                raise DataError(
                    f"data: {stage} needs the split {split!r}, and {self.data} has none; make it "
                    "with `stmeta shard` (see --val-fraction), or leave the stage out with --stage"
                )
            index = ShardIndex.open(root)
            if len(index) == 0:
                reasons = "; ".join(sorted({bad.error for bad in index.bad}))
                raise DataError(
                    f"data: {stage} needs videos, and none of {len(index.bad)} samples of {root} "
                    f"is good: {reasons or 'there are none'}"
                )
            self._opened[split] = index
        return self._opened[split]

    def _classes(self, stage: str, train: ShardIndex, val: ShardIndex) -> None:
        labels, names = trained_classes(train.labels, train.classes)
        if len(labels) < 2:
            raise DataError(
                f"data: {stage} needs samples of at least 2 classes, and {train.root} has "
                f"{len(labels)} ({', '.join(names) or 'no labels'}); label the videos by folder or "
                "with --annotations and shard them again, or leave the stage out with --stage"
            )
        known = np.isin(val.labels, labels)
        other = {val.classes[i] for i in np.unique(val.labels[~known & (val.labels >= 0)])}
        if not known.any():
            found = f"classes {', '.join(sorted(other))}" if other else "no labels"
            raise DataError(
                f"data: {stage} is validated on the classes of {train.root}, and {val.root} has "
                f"{found}; label its videos and shard them again, or leave the stage out with "
                "--stage"
            )
        if other:
            count = int((~known & (val.labels >= 0)).sum())
            self._say(
                f"{val.root}: {count} videos are of classes that {train.root} has not "
                f"({', '.join(sorted(other))}): they count in no figure"
            )

    def _episodes(self, split: str, index: ShardIndex) -> None:
        settings = self.config.fewshot
        try:
            EpisodeSampler(index.labels, ways=settings.ways, instances=settings.instances)
        except ValueError as error:
            raise DataError(
                f"data: fewshot cannot make episodes from {index.root}: {error} "
                f"(--fewshot.ways {settings.ways}, --fewshot.instances {settings.instances}), or "
                "leave the stage out with --stage"
            ) from error

    def _weights(self, stage: str, flag: str, source: str, done: tuple[str, ...]) -> None:
        """Weights that a stage begins with: an earlier stage makes them, or they are there."""
        if source == "scratch" or source in done:
            return
        path = self.config.folder / source / "last.safetensors"
        if not path.exists():
            late = source in self.config.stage
            remedy = f"put {source} before {stage}" if late else f"run the stage {source!r} first"
            raise DataError(
                f"weights: {stage} begins with those of {source}, and {path} is missing; {remedy} "
                f"(--stage), or start from random weights with {flag} scratch"
            )
        load_encoder(VideoClassifier(self.config.model, num_classes=1), path, flag)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _log.warning("%s", line)


def load_encoder(model: VideoClassifier, path: Path, flag: str) -> None:
    """Put the encoder of another stage into a model.

    Raises:
        DataError: the file is missing, damaged, or of another model.
    """
    weights = checkpoint.load_weights(path)
    try:
        model.load_encoder(weights)
    except ValueError as error:
        raise DataError(
            f"weights: {path} does not fit --model: {error}; use the settings that it was trained "
            f"with, or start from random weights with {flag} scratch"
        ) from error
