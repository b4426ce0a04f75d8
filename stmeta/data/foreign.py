"""Checks an index before anything that it says is used: it may come from somebody else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stmeta.data.tarsamples import LARGEST_VIDEO
from stmeta.data.tarscan import MOST_LABELS

_NAME = re.compile(r"[^/\\\x00-\x1f]+\.tar")
_BOUNDS = {"frames": (1, 2**24), "width": (1, 2**15), "height": (1, 2**15), "fps": (1e-6, 1e6)}


def lists_fault(shards: Any, classes: Any) -> str:
    """What is wrong with an index's lists of shards and of classes; "" = nothing.

    Args:
        shards: should be a dict of file name to [bytes, time of change].
        classes: should be a list of names, or None.
    """
    if classes is not None and (
        not isinstance(classes, list) or not all(isinstance(name, str) for name in classes)
    ):
        return "its classes are no names"
    if not isinstance(shards, dict) or not shards:
        return "it lists no shards"
    for name, stamp in shards.items():
        if not _NAME.fullmatch(name) or ".." in name:
            return f"{name!r} is no file name of a shard"
        if not isinstance(stamp, list) or len(stamp) != 2 or {*map(type, stamp)} != {int}:
            return f"the size of {name!r} is not given"
    return ""


def places_fault(table: pa.Table, shards: Mapping[str, Sequence[int]]) -> str:
    """What is wrong with where the good samples of an index lie; "" = nothing.

    Args:
        table: the index, with columns shard, offset, size and error.
        shards: name to [bytes, ...], checked already.
    """
    table = _good(table, table.column_names)
    if any(table[name].null_count for name in table.column_names):
        return "values are missing"
    lengths = _sizes_of_shards(table["shard"], shards)
    if lengths is None:
        return "samples lie in files that are not among its shards"
    offset, size = table["offset"].to_numpy(), table["size"].to_numpy()
    inside = (offset >= 0) & (size > 0) & (size <= LARGEST_VIDEO) & (offset <= lengths - size)
    return "" if inside.all() else f"{(~inside).sum()} samples lie outside of their shards"


def values_fault(table: pa.Table, classes: Sequence[str] | None) -> str:
    """What is wrong with the labels and sizes of the good samples of an index; "" = nothing."""
    table = _good(table, [*_BOUNDS, "label", "rotation"])
    most = MOST_LABELS if classes is None else len(classes)
    for name, (low, high) in {**_BOUNDS, "label": (-1, most - 1)}.items():
        values = table[name].to_numpy()
        if not ((values >= low) & (values <= high)).all():
            return f"{name} must be in [{low}, {high}]"
    if not set(table["rotation"].unique().to_pylist()) <= {0, 90, 180, 270}:
        return "rotation must be 0, 90, 180 or 270"
    return ""


def _good(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Rows without an error. Most tables have no others; those are not copied."""
    good = pc.call_function("equal", [table["error"].cast(pa.string()), ""])
    table = table.select(columns)
    return table if pc.call_function("all", [good]).as_py() else table.filter(good)


def _sizes_of_shards(
    shard: pa.ChunkedArray, shards: Mapping[str, Sequence[int]]
) -> np.ndarray | None:
    """Bytes of each sample's shard, int64 [n]; None where one is not listed."""
    parts = [np.empty(0, np.int64)]
    for chunk in shard.chunks:  # by their few names, as a column of strings is large
        sizes = [shards.get(name, (-1,))[0] for name in chunk.dictionary.to_pylist()]
        parts.append(np.array(sizes, np.int64)[chunk.indices.to_numpy()])
    found = np.concatenate(parts)
    return None if (found < 0).any() else found
