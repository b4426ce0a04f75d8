"""Triton implementation of stmeta::restore_tokens. Reference: stmeta.ops.restore_tokens.

The forward has a program for a few tokens of one sample. In the backward a program goes through
some tokens, and for each of them through the batch: one pass over the gradient gives all three
results, with one partial sum of the mask token's gradient for each program.

Letters: B batch, N tokens, K of them kept, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._reduce import column_sum
from .gather_tokens import dense_rows, row_tile

PROGRAMS = 512  # of the backward: each leaves one partial sum


# Reads B * K * D numbers and writes B * N * D.
@triton.jit
def _restore_tokens_fwd_kernel(
    latent_ptr, mask_token_ptr, pos_ptr,  # in:  [B, K, D] with strides, [D], [N, D] or None
    restore_ptr,  # in:  [B, N]
    out_ptr,  # out: [B, N, D]
    tokens, kept, width, stride_b, stride_k,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(tokens, BLOCK_ROWS)
    batch = tl.program_id(0).to(tl.int64) // blocks
    n = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = n.to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    live = (n < tokens)[:, None] & (d < width)[None, :]
    row = tl.load(restore_ptr + batch * tokens + n, mask=n < tokens, other=-1)
    here = ((row >= 0) & (row < kept))[:, None]
    place = batch * stride_b + row[:, None] * stride_k + d[None, :]
    value = tl.load(latent_ptr + place, mask=live & here, other=0.0).to(tl.float32)
    missing = tl.load(mask_token_ptr + d, mask=d < width, other=0.0).to(tl.float32)
    value = tl.where(here, value, missing[None, :])
    if pos_ptr is not None:
        pos = tl.load(pos_ptr + n[:, None] * width + d[None, :], mask=live, other=0.0)
        value += pos.to(tl.float32)
    place = (batch * tokens + n)[:, None] * width + d[None, :]
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=live)


# Reads B * N * D numbers once; writes B * K * D, and N * D in fp32.
@triton.jit
def _restore_tokens_bwd_kernel(
    grad_ptr, restore_ptr,  # in:  [B, N, D] with strides, [B, N]
    grad_latent_ptr,  # out: [B, K, D] or None
    partial_ptr, grad_pos_ptr,  # out: [programs, D] fp32 or None, [N, D] fp32 or None
    batch, tokens, kept, width, stride_b, stride_n,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    masked = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for token in range(program, tokens, tl.num_programs(0)):
        total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
        for first in range(0, batch, BLOCK_ROWS):
            b = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
            live = (b < batch)[:, None] & (d < width)[None, :]
            row = tl.load(restore_ptr + b * tokens + token, mask=b < batch, other=-1)
            place = (b * stride_b + token * stride_n)[:, None] + d[None, :]
            grad = tl.load(grad_ptr + place, mask=live, other=0.0)
            here = ((row >= 0) & (row < kept))[:, None]
            if grad_latent_ptr is not None:
                place = (b * kept + row)[:, None] * width + d[None, :]
                tl.store(grad_latent_ptr + place, grad, mask=live & here)
            masked += tl.where(here, 0.0, grad.to(tl.float32))
            total += grad.to(tl.float32)
        if grad_pos_ptr is not None:
            tl.store(grad_pos_ptr + token * width + d, tl.sum(total, 0), mask=d < width)
    if partial_ptr is not None:
        tl.store(partial_ptr + program * width + d, tl.sum(masked, 0), mask=d < width)


def restore_tokens(
    latent: torch.Tensor,
    mask_token: torch.Tensor,
    pos: torch.Tensor | None,
    ids_restore: torch.Tensor,
) -> torch.Tensor:
    """Launch the forward: all tokens, [B, N, D]."""
    batch, tokens = ids_restore.shape
    kept, width = latent.shape[1:]
    out = latent.new_empty(batch, tokens, width)
    if out.numel() == 0:
        return out
    latent = dense_rows(latent)
    pos = None if pos is None else pos.contiguous()
    tile = row_tile(width)
    grid = (batch * triton.cdiv(tokens, tile["BLOCK_ROWS"]), triton.cdiv(width, tile["BLOCK_D"]))
    with torch.cuda.device_of(latent):
        _restore_tokens_fwd_kernel[grid](
            *(latent, mask_token.contiguous(), pos, ids_restore.contiguous(), out),
            *(tokens, kept, width, *latent.stride()[:2]),
            **tile,
        )
    return out


def restore_tokens_backward(
    grad: torch.Tensor, ids_restore: torch.Tensor, keep: int, needs: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of latent [B, K, D], mask_token [D], pos [N, D].

    The last two are fp32; [0] where `needs` says no.
    """
    batch, tokens, width = grad.shape
    make = grad.new_empty if grad.numel() else grad.new_zeros
    grad_latent = make((batch, keep, width) if needs[0] else (0,))
    grad_mask = make((width,) if needs[1] else (0,), dtype=torch.float32)
    grad_pos = make((tokens, width) if needs[2] else (0,), dtype=torch.float32)
    if grad.numel() == 0 or not any(needs):
        return grad_latent, grad_mask, grad_pos
    grad = dense_rows(grad)
    tile = row_tile(width)
    programs = min(tokens, PROGRAMS)
    partial = grad_mask.new_empty(programs, width) if needs[1] else None
    with torch.cuda.device_of(grad):
        _restore_tokens_bwd_kernel[(programs, triton.cdiv(width, tile["BLOCK_D"]))](
            *(grad, ids_restore.contiguous()),
            *(grad_latent if needs[0] else None, partial, grad_pos if needs[2] else None),
            *(batch, tokens, keep, width, *grad.stride()[:2]),
            **tile,
        )
        if partial is not None:
            grad_mask = column_sum(partial)
    return grad_latent, grad_mask, grad_pos
