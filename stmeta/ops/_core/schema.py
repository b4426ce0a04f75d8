"""Arguments and results of an op by the names that its schema gives them."""

from __future__ import annotations

import re
from collections import namedtuple
from typing import Any


def arguments_of(schema: str) -> Any:
    """A named tuple of the arguments of `"(Tensor x, int[] sizes) -> Tensor"`: x, sizes."""
    return _tuple("Arguments", schema.partition("->")[0])


def results_of(schema: str) -> Any:
    """A named tuple of its results; None where it gives one tensor without a name."""
    return _tuple("Results", schema.partition("->")[2])


def _tuple(kind: str, part: str) -> Any:
    names = re.findall(r"\S+\s+(\w+)\s*[,)]", part)
    return namedtuple(kind, names) if names else None
