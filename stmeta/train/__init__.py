"""Training: `python -m stmeta.train --recipe demo --fused`. Importing it loads nothing heavy."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {"main": "__main__", "parse": "__main__", "RunConfig": "config", "Trainer": "trainer"}
__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'stmeta.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
