"""Fused operations on video and on memories: an eager reference each, and kernels per device.

`backend="auto"` takes the first implementation that can run; `python -m stmeta.ops` shows which.
"""

from __future__ import annotations

from stmeta.ops import _again as _again
from stmeta.ops._dispatch import BACKENDS, availability, backend, explain, resolve
from stmeta.ops.allocation import allocation, allocation_ref
from stmeta.ops.content_addressing import content_addressing, content_addressing_ref
from stmeta.ops.erase_add import erase_add, erase_add_ref
from stmeta.ops.gather_tokens import gather_tokens, gather_tokens_ref
from stmeta.ops.locality_attention import locality_attention, locality_attention_ref
from stmeta.ops.location_addressing import location_addressing, location_addressing_ref
from stmeta.ops.lrua_step import LRUAStep, lrua_step, lrua_step_ref
from stmeta.ops.masked_patch_loss import masked_patch_loss, masked_patch_loss_ref, patch_targets
from stmeta.ops.memory_read import memory_read, memory_read_ref
from stmeta.ops.memory_scan import MemoryScan, memory_scan, memory_scan_ref
from stmeta.ops.ntm_scan import NTMScan, ntm_scan, ntm_scan_ref
from stmeta.ops.ntm_step import NTMStep, ntm_step, ntm_step_ref
from stmeta.ops.patch_shift import patch_shift, patch_shift_ref, shift_offsets
from stmeta.ops.random_masking import (
    Masking,
    MaskMode,
    masking_from_keep,
    random_masking,
    random_masking_ref,
)
from stmeta.ops.restore_tokens import restore_tokens, restore_tokens_ref
from stmeta.ops.shifted_patch_embed import shifted_patch_embed, shifted_patch_embed_ref
from stmeta.ops.temporal_link import temporal_link, temporal_link_ref

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
