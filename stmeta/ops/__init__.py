"""Fused operations on video and on memories: an eager reference each, and kernels per device.

`backend="auto"` takes the first implementation that can run; `python -m stmeta.ops` shows which.
"""

from __future__ import annotations

import warnings
from typing import Any

from stmeta.ops._core.dispatch import BACKENDS as BACKENDS
from stmeta.ops._core.dispatch import availability as availability
from stmeta.ops._core.dispatch import backend as backend
from stmeta.ops._core.dispatch import explain as explain
from stmeta.ops._core.dispatch import resolve as resolve
from stmeta.ops.memory.allocation import *
from stmeta.ops.memory.content_addressing import *
from stmeta.ops.memory.erase_add import *
from stmeta.ops.memory.location_addressing import *
from stmeta.ops.memory.lrua_step import *
from stmeta.ops.memory.memory_read import *
from stmeta.ops.memory.ntm_step import *
from stmeta.ops.memory.temporal_link import *
from stmeta.ops.scan.lrua_scan import *
from stmeta.ops.scan.ntm_scan import *
from stmeta.ops.video.gather_tokens import *
from stmeta.ops.video.locality_attention import *
from stmeta.ops.video.masked_patch_loss import *
from stmeta.ops.video.patch_shift import *
from stmeta.ops.video.random_masking import *
from stmeta.ops.video.restore_tokens import *
from stmeta.ops.video.shifted_patch_embed import *

_RENAMED = {
    "memory_scan": "lrua_scan",
    "memory_scan_ref": "lrua_scan_ref",
    "MemoryScan": "LRUAScan",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(
            f"stmeta.ops.{name} is now {new}; use stmeta.ops.{new}",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[new]
    raise AttributeError(f"module 'stmeta.ops' has no attribute {name!r}")
