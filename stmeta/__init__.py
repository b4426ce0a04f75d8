"""stmeta: fast video loading, fused kernels and memory-augmented learning for video models.

Importing this package loads nothing heavy: `ops`, `backend`, `fuse` and `unfuse` come on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stmeta import ops as ops
    from stmeta.ops import backend as backend
    from stmeta.swap import fuse as fuse
    from stmeta.swap import unfuse as unfuse

__version__ = "0.1.0"
__all__ = ["__version__", "backend", "fuse", "ops", "unfuse"]


def __getattr__(name: str) -> Any:
    if name == "backend":
        from stmeta.ops import backend

        return backend
    if name in ("fuse", "unfuse"):
        from stmeta import swap

        return getattr(swap, name)
    if name == "ops":
        import importlib

        return importlib.import_module("stmeta.ops")
    raise AttributeError(f"module 'stmeta' has no attribute {name!r}")
