"""Second stage of a deterministic reduction, shared by the backward passes of all ops."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Reads rows * columns * 4 bytes once.
@triton.jit
def _column_sum_kernel(
    partial_ptr,  # in:  [rows, columns] fp32
    out_ptr,  # out: [columns] fp32
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for first in range(0, rows, BLOCK_ROWS):
        offset = (first + row)[:, None].to(tl.int64) * columns + column[None, :]
        live = (first + row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(partial_ptr + offset, mask=live, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, 0), mask=column < columns)


def column_sum(partial: torch.Tensor) -> torch.Tensor:
    """Sum a contiguous fp32 [rows, columns] over its rows, always in the same order."""
    rows, columns = partial.shape
    out = torch.empty(columns, dtype=torch.float32, device=partial.device)
    grid = (triton.cdiv(columns, 32),)
    _column_sum_kernel[grid](
        partial, out, rows, columns, BLOCK_ROWS=32, BLOCK_COLUMNS=32, num_warps=4
    )
    return out
