"""Values of JSON as the frozen dataclasses that they were written from, with every type checked."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union


def build(kind: Any, value: Any) -> Any:
    """Make a dataclass from what `dataclasses.asdict` and JSON made of one.

    Args:
        kind: the dataclass; its fields are dataclasses, numbers, strings, paths, literals, tuples,
            and unions of them.
        value: what JSON holds.

    Raises:
        ValueError: a field is not known, or a value is of another type; the field is named.
    """
    return _build(kind, value, "")


def _build(kind: Any, value: Any, path: str) -> Any:
    """A value of JSON as what a field is declared to be; `path` tells the field in errors."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    if origin in (Union, types.UnionType):
        return _build_union(args, value, path)
    if origin in (tuple, collections.abc.Sequence):
        if isinstance(value, list) and (
            len(args) == len(value) or args[-1] is ... or len(args) == 1
        ):
            kinds = (
                args if len(args) == len(value) and args[-1] is not ... else args[:1] * len(value)
            )
            return tuple(_build(k, item, path) for k, item in zip(kinds, value, strict=True))
    elif origin is Literal:
        if value in args:
            return value
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif kind is Path:
        if isinstance(value, str) and "\0" not in value:
            return Path(value)
    elif type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ValueError(f"config: {path or 'it'} must be {name}, got {value!r:.60}")


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"config: {path or 'it'} must hold fields, got {value!r:.60}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ValueError(
            f"config: {kind.__name__} has no field {', '.join(unknown)[:200]}; the run was made by "
            "another version of stmeta: train again, or resume with that version"
        )
    below = f"{path}." if path else ""
    return kind(**{name: _build(hints[name], item, below + name) for name, item in value.items()})


def _build_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    error: ValueError | None = None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _build(kind, value, path)
        except ValueError as reason:
            error = error or reason
    assert error is not None
    raise error
