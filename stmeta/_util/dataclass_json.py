"""Frozen dataclasses as values of JSON and back, with every type checked.

Where a field is declared as a base class, the class of its value stands beside its fields, as
"class": "stmeta.memory.ntm:NTMConfig". Only classes of stmeta, or of modules that are imported
already, can be named: a file cannot choose what code is loaded.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import math
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

_CLASS = "class"


def to_values(value: Any, declared: Any = None) -> Any:
    """What `json.dumps` takes, for `build` to read back.

    Args:
        value: a dataclass, or what is in one.
        declared: what it is declared as; another class of its own is written down.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        same = kind is declared or kind in typing.get_args(declared)
        hints = typing.get_type_hints(kind)
        fields = {
            field.name: to_values(getattr(value, field.name), hints[field.name])
            for field in dataclasses.fields(value)
        }
        return fields if same else {_CLASS: f"{kind.__module__}:{kind.__qualname__}"} | fields
    if isinstance(value, dict):
        inside = (typing.get_args(declared) or (None, None))[1]
        return {name: to_values(item, inside) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_values(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(kind: Any, value: Any) -> Any:
    """Make a dataclass from what `to_values` and JSON made of one.

    Args:
        kind: the dataclass; its fields are dataclasses, numbers, strings, paths, literals, tuples,
            dictionaries by name, and unions of them.
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
    elif origin is dict:
        if isinstance(value, dict):
            return {name: _build(args[1], item, f"{path}.{name}") for name, item in value.items()}
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
    if _CLASS in value:
        value = dict(value)
        kind = _named(value.pop(_CLASS), kind, path)
    if inspect.isabstract(kind):
        raise ValueError(f"config: {path or 'it'} must name its class, got {sorted(value)!r:.60}")
    every = typing.get_type_hints(kind)
    hints = {field.name: every[field.name] for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ValueError(
            f"config: {kind.__name__} has no field {', '.join(unknown)[:200]}; the run was made by "
            "another version of stmeta: train again, or resume with that version"
        )
    below = f"{path}." if path else ""
    return kind(**{name: _build(hints[name], item, below + name) for name, item in value.items()})


def _named(name: Any, base: type, path: str) -> Any:
    """The class that is written down, "module:Class"."""
    words = re.fullmatch(r"([\w.]+):(\w+)", name) if isinstance(name, str) else None
    module = sys.modules.get(words[1]) if words else None
    if words and module is None and words[1].startswith("stmeta."):
        try:
            module = importlib.import_module(words[1])
        except ImportError:
            module = None
    found = getattr(module, words[2], None) if words else None
    if isinstance(found, type) and issubclass(found, base) and dataclasses.is_dataclass(found):
        return found
    raise ValueError(
        f"config: {path or 'it'} must be a {base.__name__}, got the class {name!r:.100}; if it is "
        "one of yours, import its module first; else the run was made by another version of stmeta"
    )


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
