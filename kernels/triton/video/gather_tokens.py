"""Triton implementation of stmeta::gather_tokens. Reference: stmeta.ops.gather_tokens.

The forward has a program for a few kept rows of one sample. The backward has one for each token: it
goes through the batch in chunks, so that the positions' gradient needs no second kernel.

Letters: B batch, N tokens, K of them kept, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Reads and writes B * K * D numbers; positions come from L2 but for the first sample.
@triton.jit
def _gather_tokens_fwd_kernel(
    x_ptr, pos_ptr, ids_ptr,  # in:  [B, N, D] with strides, [N, D] or None, [B, K]
    out_ptr,  # out: [B, K, D]
    tokens, kept, width, stride_b, stride_n,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(kept, BLOCK_ROWS)
    batch = tl.program_id(0).to(tl.int64) // blocks
    k = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = batch * kept + k
    token = tl.load(ids_ptr + row, mask=k < kept, other=-1)
    inside = (token >= 0) & (token < tokens)  # nobody has checked them on a GPU
    live = inside[:, None] & (d < width)[None, :]
    place = batch * stride_b + token[:, None] * stride_n + d[None, :]
    value = tl.load(x_ptr + place, mask=live, other=0.0)
    if pos_ptr is not None:
        pos = tl.load(pos_ptr + token[:, None] * width + d[None, :], mask=live, other=0.0)
        value = value.to(tl.float32) + pos.to(tl.float32)
    live = (k < kept)[:, None] & (d < width)[None, :]
    place = row[:, None] * width + d[None, :]
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=live)


# Reads B * K * D numbers and writes B * N * D; a program of the last axis has every so many chunks.
@triton.jit
def _gather_tokens_bwd_kernel(
    grad_ptr, restore_ptr,  # in:  [B, K, D] with strides, [B, N]
    grad_x_ptr, grad_pos_ptr,  # out: [B, N, D] or None, [N, D] fp32 or None
    batch, tokens, kept, width, stride_b, stride_k,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    step = tl.num_programs(2) * BLOCK_ROWS
    for first in range(tl.program_id(2) * BLOCK_ROWS, batch, step):
        b = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        row = tl.load(restore_ptr + b * tokens + token, mask=b < batch, other=-1)
        live = ((row >= 0) & (row < kept))[:, None] & (d < width)[None, :]
        place = (b * stride_b + row * stride_k)[:, None] + d[None, :]
        grad = tl.load(grad_ptr + place, mask=live, other=0.0)
        if grad_x_ptr is not None:
            place = (b * tokens + token)[:, None] * width + d[None, :]
            tl.store(grad_x_ptr + place, grad, mask=(b < batch)[:, None] & (d < width)[None, :])
        total += grad.to(tl.float32)
    if grad_pos_ptr is not None:
        tl.store(grad_pos_ptr + token * width + d, tl.sum(total, 0), mask=d < width)


def gather_tokens(
    x: torch.Tensor,
    pos: torch.Tensor | None,
    ids_keep: torch.Tensor,
    ids_restore: torch.Tensor | None,
) -> torch.Tensor:
    """Launch the forward: the kept rows of x, with their positions, [B, K, D]."""
    batch, kept = ids_keep.shape
    tokens, width = x.shape[1:]
    out = x.new_empty(batch, kept, width)
    if out.numel() == 0:
        return out
    x = dense_rows(x)
    pos = None if pos is None else pos.contiguous()
    tile = row_tile(width)
    grid = (batch * triton.cdiv(kept, tile["BLOCK_ROWS"]), triton.cdiv(width, tile["BLOCK_D"]))
    with torch.cuda.device_of(x):
        _gather_tokens_fwd_kernel[grid](
            *(x, pos, ids_keep.contiguous(), out, tokens, kept, width, *x.stride()[:2]), **tile
        )
    return out


def gather_tokens_backward(
    grad: torch.Tensor, ids_keep: torch.Tensor, ids_restore: torch.Tensor, needs: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of x [B, N, D] and pos, fp32 [N, D]; [0] if not needed."""
    batch, kept, width = grad.shape
    tokens = ids_restore.shape[1]
    make = grad.new_empty if grad.numel() else grad.new_zeros
    grad_x = make((batch, tokens, width) if needs[0] else (0,))
    grad_pos = make((tokens, width) if needs[1] else (0,), dtype=torch.float32)
    if grad.numel() == 0 or tokens == 0 or not any(needs):
        return grad_x, grad_pos
    grad = dense_rows(grad)
    tile = row_tile(width)
    chunks = triton.cdiv(batch, tile["BLOCK_ROWS"])
    # Positions add up over the batch, so that one program must have all of it.
    grid = (tokens, triton.cdiv(width, tile["BLOCK_D"]), 1 if needs[1] else min(chunks, 65535))
    with torch.cuda.device_of(grad):
        _gather_tokens_bwd_kernel[grid](
            *(grad, ids_restore.contiguous()),
            *(grad_x if needs[0] else None, grad_pos if needs[1] else None),
            *(batch, tokens, kept, width, *grad.stride()[:2]),
            **tile,
        )
    return grad_x, grad_pos


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with a last axis that is dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_tile(width: int) -> dict[str, int]:
    """A tile [rows, columns] of 1,024 numbers; rows of more than that take several programs.

    No more threads than numbers: in a kernel that works in place, threads that hold copies of a
    number would read it while the one that stores it writes.
    """
    block_d = min(triton.next_power_of_2(width), 1024)
    rows = min(1024 // block_d, 32)
    return {"BLOCK_ROWS": rows, "BLOCK_D": block_d, "num_warps": min(rows * block_d // 32, 4)}
