"""Fused operations on video. Each has an eager reference, and implementations per device.

`backend="auto"` takes the first implementation that can run; `python -m stmeta.ops` shows which.
"""

from __future__ import annotations

from stmeta.ops._dispatch import BACKENDS, availability, backend, explain, resolve
from stmeta.ops.patch_shift import patch_shift, patch_shift_ref, shift_offsets

__all__ = [
    "BACKENDS",
    "availability",
    "backend",
    "explain",
    "patch_shift",
    "patch_shift_ref",
    "resolve",
    "shift_offsets",
]
