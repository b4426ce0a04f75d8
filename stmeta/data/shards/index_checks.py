"""Checks an index before anything that it says is used: it may come from somebody else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stmeta.data.shards.classes import MAX_LABELS, are_names
from stmeta.data.shards.tar_samples import LARGEST_VIDEO
from stmeta.data.video.display import WIDEST

_NAME = re.compile(r"[^/\\\x00-\x1f]+\.tar")
_BOUNDS = {
    "frames": (1, 2**24),
    "width": (1, 2**15),
    "height": (1, 2**15),
    "fps": (1e-6, 1e6),
    "duration_seconds": (0.0, 1e9),
    "aspect": (1 / WIDEST, WIDEST),
}


def lists_fault(shards: Any, classes: Any) -> str:
    """What is wrong with an index's lists of shards and of classes; "" = nothing.

    Args:
        shards: should be a dict of file name to [bytes, time of change].
        classes: should be a list of names, or None.
    """
    if classes is not None and not are_names(classes):
        return "its classes are no names"
    if not isinstance(shards, dict) or not shards:
        return "it lists no shards"
    for name, stamp in shards.items():
        if not _NAME.fullmatch(name):
            return f"{name!r} is no file name of a shard"
        if not isinstance(stamp, list) or len(stamp) != 2 or {*map(type, stamp)} != {int}:
            return f"the size of {name!r} is not given"
        if not 0 <= stamp[0] < 2**62:
            return f"the size of {name!r} is not given"
    return ""


def table_fault(
    table: pa.Table, shards: Mapping[str, Sequence[int]], classes: Sequence[str] | None
) -> str:
    """What is wrong with the rows of an index; "" = nothing.

    Args:
        table: all columns of `SampleInfo`, or those without the details.
        shards: name to [bytes, ...], checked already.
        classes: names of the labels; None = there are none.
    """
    if any(table[name].null_count for name in table.column_names):
        return "values are missing"
    good = _good(table, table.column_names)
    return _places_fault(good, shards) or _values_fault(good, classes)


def _places_fault(table: pa.Table, shards: Mapping[str, Sequence[int]]) -> str:
    lengths = _sizes_of_shards(table["shard"], shards)
    if lengths is None:
        return "samples lie in files that are not among its shards"
    offset, size = table["offset"].to_numpy(), table["size"].to_numpy()
    inside = (offset >= 0) & (size > 0) & (size <= LARGEST_VIDEO) & (offset <= lengths - size)
    return "" if inside.all() else f"{(~inside).sum()} samples lie outside of their shards"


def _values_fault(table: pa.Table, classes: Sequence[str] | None) -> str:
    most = MAX_LABELS if classes is None else len(classes)
    for name, (low, high) in {**_BOUNDS, "label": (-1, most - 1)}.items():
        values = table[name].to_numpy()
        if not ((values >= low) & (values <= high)).all():  # NaN is neither
            return f"{name} must be in [{low}, {high}]"
    # Every frame takes a byte: no file of 1 kB has a million, for which room would be made.
    if (table["frames"].to_numpy() > table["size"].to_numpy()).any():
        return "a video has more frames than bytes"
    if not set(table["rotation"].unique().to_pylist()) <= {0, 90, 180, 270}:
        return "rotation must be 0, 90, 180 or 270"
    return _keyframes_fault(table) if "keyframes" in table.column_names else ""


def _keyframes_fault(table: pa.Table) -> str:
    places = pc.call_function("list_flatten", [table["keyframes"]])
    frames = np.repeat(
        table["frames"].to_numpy(),
        pc.call_function("list_value_length", [table["keyframes"]]).to_numpy(),
    )
    if places.null_count:
        return "key frames are missing"
    values = places.to_numpy()
    return "" if ((values >= 0) & (values < frames)).all() else "key frames lie outside of videos"


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
