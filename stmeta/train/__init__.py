"""Training: `python -m stmeta.train --recipe demo --fused`. Importing it loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmeta._util.lazy_names import lazy_names

if TYPE_CHECKING:
    from stmeta.train.__main__ import main as main
    from stmeta.train.__main__ import parse as parse
    from stmeta.train.config import RunConfig as RunConfig
    from stmeta.train.trainer import Trainer as Trainer

__all__ = ["RunConfig", "Trainer", "main", "parse"]
_MODULES = {"RunConfig": "config", "Trainer": "trainer", "main": "__main__", "parse": "__main__"}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)
