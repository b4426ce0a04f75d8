"""What can be known to be wrong before the first step of a run: settings, and what it resumes.

For all tasks at once: a mistake in the last of them must not show after hours of the first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from stmeta._errors import DataError
from stmeta.data.loading.config import LoaderConfig
from stmeta.train import checkpoint
from stmeta.train.config import RunConfig
from stmeta.train.run_folder import read_config
from stmeta.train.tasks._clips import SET_BY_TASKS

_LEAST = {
    **dict.fromkeys(("save_every", "batch_size", "evals", "views", "instances", "episodes"), 1),
    **dict.fromkeys(("test_episodes", "repeats", "threads", "stride", "steps", "bits"), 1),
    **dict.fromkeys(("max_length", "image_size", "dim", "depth", "heads", "head_dim"), 1),
    **dict.fromkeys(("hidden", "rows", "width", "num_heads", "read_heads", "write_heads"), 1),
    **dict.fromkeys(("in_chans", "clip_batch_size"), 1),
    **dict.fromkeys(("max_steps", "prefetch", "cache_mib", "clip_grad", "weight_decay"), 0),
    **dict.fromkeys(("min_lr", "mixup", "matching", "shift", "rotation"), 0),
    "ways": 2,
}
"""Least value of a field of that name, in any of the configs."""

_INSIDE: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        ("mask_ratio", "label_smoothing", "drop_path", "dropout", "betas", "momentum"),
        ("in [0, 1)", lambda v: 0 <= v < 1),
    ),
    **dict.fromkeys(("epochs", "lr", "mlp_ratio", "std", "eps"), ("above 0", lambda v: v > 0)),
    **dict.fromkeys(("warmup", "max_error_rate", "hflip"), ("in [0, 1]", lambda v: 0 <= v <= 1)),
    **dict.fromkeys(("layer_decay", "decay"), ("in (0, 1]", lambda v: 0 < v <= 1)),
    **dict.fromkeys(("filters", "widths", "test_lengths"), ("above 0", lambda v: v > 0)),
}


def check_settings(config: RunConfig) -> None:
    """Check what every field says for itself.

    Raises:
        ValueError: a value is out of range; its flag is named.
    """
    config.check_order()
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
    for field in dataclasses.fields(LoaderConfig) if config.clip else ():
        if field.name in SET_BY_TASKS and getattr(config.clip, field.name) != field.default:
            flag = f"--clip.{field.name.replace('_', '-')}"
            raise ValueError(
                f"{flag} has no effect, as tasks, model and run decide it: batch sizes and views "
                "are the tasks', --model.frames and --model.image-size the clip's, --seed and "
                "--device the run's"
            )


def _fields(config: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Flag, name and value of every field, also of the configs inside."""
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{flag}.")
        elif isinstance(value, dict):  # the tasks, whose options begin with their own names
            for name, item in value.items():
                yield from _fields(item, f"{prefix}{name.replace('_', '-')}.")
        else:
            yield flag, field.name, value


def check_state(config: RunConfig) -> None:
    """Check the checkpoints that a resumed run goes on from, each for itself.

    Raises:
        DataError: one is damaged, or the run was of another model.
    """
    before = read_config(config.folder)
    if not set(config.order) <= set(before.tasks):
        raise DataError(
            f"--resume: the run in {config.folder} is of recipe {before.recipe!r}, which trains "
            f"something else than {config.recipe!r}; continue it with --resume {config.folder} "
            "alone, or train into another --out"
        )
    same: dict[str, tuple[Any, Any]] = {"--model": (before.model, config.model)}
    for name in config.order:
        was, now = before.tasks[name], config.tasks[name]
        flag = f"--{name}".replace("_", "-")
        if type(was) is not type(now):
            same[flag] = (type(was).__name__, type(now).__name__)
            continue
        for field in now.fixed:
            key = f"{flag}.{field}".replace("_", "-")
            same[key] = (getattr(was, field), getattr(now, field))
    for flag, (was, now) in same.items():
        if was != now:
            raise DataError(
                f"--resume: the run in {config.folder} was begun with another {flag} "
                f"({_changes(was, now)}); leave it as it was, or train into another --out"
            )
    for name in config.order:
        path = config.folder / name / "last.pt"
        if path.exists():
            checkpoint.load_state(path)


def _changes(was: Any, now: Any) -> str:
    if type(was) is not type(now) or not dataclasses.is_dataclass(was):
        names = (type(v).__name__ if dataclasses.is_dataclass(v) else v for v in (was, now))
        return "{}, now {}".format(*names)
    pairs = {f.name: (getattr(was, f.name), getattr(now, f.name)) for f in dataclasses.fields(was)}
    found = ((name, a, b) for name, (a, b) in pairs.items() if a != b)
    return ", ".join(
        f"{name}: {_changes(a, b)}" if dataclasses.is_dataclass(a) else f"{name} {a}, now {b}"
        for name, a, b in found
    )
