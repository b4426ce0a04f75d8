"""Fused operations on video and on memories: an eager reference each, and kernels per device.

`backend="auto"` takes the first implementation that can run; `python -m stmeta.ops` shows which.
"""

from __future__ import annotations

from stmeta.ops._core import double_backward as _double_backward  # noqa: F401
from stmeta.ops._core.dispatch import BACKENDS, availability, backend, explain, resolve
from stmeta.ops.memory.allocation import allocation, allocation_ref
from stmeta.ops.memory.content_addressing import content_addressing, content_addressing_ref
from stmeta.ops.memory.erase_add import erase_add, erase_add_ref
from stmeta.ops.memory.location_addressing import location_addressing, location_addressing_ref
from stmeta.ops.memory.lrua_step import LRUAStep, lrua_step, lrua_step_ref
from stmeta.ops.memory.memory_read import memory_read, memory_read_ref
from stmeta.ops.memory.ntm_step import NTMStep, ntm_step, ntm_step_ref
from stmeta.ops.memory.temporal_link import temporal_link, temporal_link_ref
from stmeta.ops.scan.memory_scan import MemoryScan, memory_scan, memory_scan_ref
from stmeta.ops.scan.ntm_scan import NTMScan, ntm_scan, ntm_scan_ref
from stmeta.ops.video.gather_tokens import gather_tokens, gather_tokens_ref
from stmeta.ops.video.locality_attention import locality_attention, locality_attention_ref
from stmeta.ops.video.masked_patch_loss import (
    masked_patch_loss,
    masked_patch_loss_ref,
    patch_targets,
)
from stmeta.ops.video.patch_shift import patch_shift, patch_shift_ref, shift_offsets
from stmeta.ops.video.random_masking import (
    Masking,
    MaskMode,
    masking_from_keep,
    random_masking,
    random_masking_ref,
)
from stmeta.ops.video.restore_tokens import restore_tokens, restore_tokens_ref
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed, shifted_patch_embed_ref

__all__ = [
    "BACKENDS",
    "LRUAStep",
    "MaskMode",
    "Masking",
    "MemoryScan",
    "NTMScan",
    "NTMStep",
    "allocation",
    "allocation_ref",
    "availability",
    "backend",
    "content_addressing",
    "content_addressing_ref",
    "erase_add",
    "erase_add_ref",
    "explain",
    "gather_tokens",
    "gather_tokens_ref",
    "locality_attention",
    "locality_attention_ref",
    "location_addressing",
    "location_addressing_ref",
    "lrua_step",
    "lrua_step_ref",
    "masked_patch_loss",
    "masked_patch_loss_ref",
    "masking_from_keep",
    "memory_read",
    "memory_read_ref",
    "memory_scan",
    "memory_scan_ref",
    "ntm_scan",
    "ntm_scan_ref",
    "ntm_step",
    "ntm_step_ref",
    "patch_shift",
    "patch_shift_ref",
    "patch_targets",
    "random_masking",
    "random_masking_ref",
    "resolve",
    "restore_tokens",
    "restore_tokens_ref",
    "shift_offsets",
    "shifted_patch_embed",
    "shifted_patch_embed_ref",
    "temporal_link",
    "temporal_link_ref",
]
