"""Triton implementation of stmeta::random_masking. Reference: stmeta.ops.random_masking.

A unit is kept if fewer than `keep` units come before it; they are counted, without a sort. That is
O(units^2), so that with more than 4,096 units torch's stable sort says which are kept. A program
for each sample then walks through its tokens and numbers the kept and the masked ones.

Letters: B batch, U units, N tokens, K of them kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_COUNTED = 4096


# Compares U * U numbers of each sample, from L1.
@triton.jit
def _random_masking_fwd_rank_kernel(
    noise_ptr,  # in:  [B, U] fp32
    kept_ptr,  # out: [B, U] uint8, 1 = kept
    units, keep,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(units, BLOCK_I)
    row = noise_ptr + tl.program_id(0).to(tl.int64) // blocks * units
    i = tl.program_id(0) % blocks * BLOCK_I + tl.arange(0, BLOCK_I)
    ours = tl.load(row + i, mask=i < units, other=0.0)[:, None]
    before = tl.zeros([BLOCK_I, BLOCK_J], tl.int32)
    for first in range(0, units, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        other = tl.load(row + j, mask=j < units, other=float("inf"))[None, :]
        tie = (other == ours) & (j[None, :] < i[:, None])
        before += ((other < ours) | tie).to(tl.int32)
    kept = tl.sum(before, 1) < keep
    place = tl.program_id(0).to(tl.int64) // blocks * units + i
    tl.store(kept_ptr + place, kept.to(tl.uint8), mask=i < units)


# Reads B * U bytes and writes B * 17 N.
@triton.jit
def _random_masking_fwd_scatter_kernel(
    kept_ptr,  # in:  [B, U] uint8, 1 = kept
    ids_keep_ptr, ids_restore_ptr, ids_masked_ptr,  # out: [B, K], [B, N], [B, N - K], int64
    mask_ptr,  # out: [B, N] uint8, 1 = masked
    tokens, kept_tokens, places, units,
    step_t, step_p,  # units from one time step, one place to the next
    BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    kept_before = 0
    for first in range(0, tokens, BLOCK):
        n = first + tl.arange(0, BLOCK)
        live = n < tokens
        unit = n // places * step_t + n % places * step_p
        flag = tl.load(kept_ptr + batch * units + unit, mask=live, other=0).to(tl.int32)
        slot = kept_before + tl.cumsum(flag, 0) - flag
        kept = live & (flag != 0)
        masked = live & (flag == 0)
        restore = tl.where(kept, slot, kept_tokens + n - slot).to(tl.int64)
        token = n.to(tl.int64)
        tl.store(ids_keep_ptr + batch * kept_tokens + slot, token, mask=kept)
        tl.store(ids_masked_ptr + batch * (tokens - kept_tokens) + (n - slot), token, mask=masked)
        tl.store(ids_restore_ptr + batch * tokens + n, restore, mask=live)
        tl.store(mask_ptr + batch * tokens + n, (flag == 0).to(tl.uint8), mask=live)
        kept_before += tl.sum(flag, 0)


def random_masking(
    noise: torch.Tensor, keep: int, units: list[int], grid: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch it: ids_keep [B, K], ids_restore [B, N], ids_masked [B, N - K], mask [B, N]."""
    batch, count = noise.shape
    tokens = grid[0] * grid[1]
    kept_tokens = keep * tokens // max(count, 1)
    sizes = (kept_tokens, tokens, tokens - kept_tokens)
    ids = [noise.new_empty(batch, size, dtype=torch.int64) for size in sizes]
    mask = noise.new_empty(batch, tokens, dtype=torch.uint8)
    if mask.numel() == 0:
        return *ids, mask.view(torch.bool)
    with torch.cuda.device_of(noise):
        _random_masking_fwd_scatter_kernel[(batch,)](
            *(_kept_units(noise.contiguous(), keep), *ids, mask),
            *(tokens, kept_tokens, grid[1], count),
            *(units[1] if units[0] > 1 else 0, 1 if units[1] > 1 else 0),
            BLOCK=min(max(triton.next_power_of_2(tokens), 32), 1024),
            num_warps=4,
        )
    return *ids, mask.view(torch.bool)


def _kept_units(noise: torch.Tensor, keep: int) -> torch.Tensor:
    """Uint8 [B, U]: 1 for the `keep` units with the smallest noise, the lower one on a tie."""
    batch, count = noise.shape
    if count > MOST_COUNTED:
        chosen = noise.argsort(dim=1, stable=True)[:, :keep]
        return torch.zeros_like(noise, dtype=torch.uint8).scatter_(1, chosen, 1)
    kept = torch.empty_like(noise, dtype=torch.uint8)
    blocks = triton.cdiv(count, 32)
    _random_masking_fwd_rank_kernel[(batch * blocks,)](
        noise, kept, count, keep, BLOCK_I=32, BLOCK_J=128, num_warps=4
    )
    return kept
