"""Triton's patch_shift without a GPU: interpreted against the reference, compiled for real targets.

On a GPU: test_patch_shift_gpu.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.ops._harness.triton_aot import compile_launches, run_interpreted

DIAGONAL = (0, 0, 0, 0, -8, -8, 0, -8, 8, 0, 8, -8, 0, 8, 8)


def test_interpreter():
    run_interpreted("patch_shift")


@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("patch", [8, 16])  # F = 1,920 and 7,680
def test_compiles_without_spills(patch, target):
    kernels = compile_launches(lambda: _launch(2, patch, DIAGONAL), target)
    names = {kernel.name for kernel in kernels}
    forward = "_patch_shift_fwd_kernel"
    assert names == {
        forward, "_patch_shift_bwd_rows_kernel", "_patch_shift_bwd_slots_kernel",
        "_patch_shift_bwd_video_kernel", "_column_sum_kernel",
    }  # fmt: skip
    assert [kernel for kernel in kernels if kernel.stack] == []
    assert next(kernel.registers for kernel in kernels if kernel.name == forward) <= 96


def test_compiles_where_sizes_are_one():
    """Triton makes a constant of each integer that is one, on which methods of tensors fail."""
    kernels = compile_launches(lambda: _launch(1, 1, (0, 0, 0), size=1), 90)
    assert [kernel for kernel in kernels if kernel.stack] == []


def _launch(tubelet: int, patch: int, shifts: tuple[int, ...], size: int = 64) -> None:
    """The forward and the backward of bf16 tokens with everything on, on tensors without data."""
    from stmeta.kernels.triton.video import patch_shift as launcher

    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    shape = (2, 16 if size > 1 else 1, size, size, 3)
    bytes_, floats = (
        meta(*shape, dtype=dtype).permute(0, 4, 1, 2, 3) for dtype in (torch.uint8, torch.float32)
    )
    ids_keep = meta(2, 1, dtype=torch.int64)
    weight = meta(tubelet * patch**2 * len(shifts))
    numbers = ([tubelet, patch], list(shifts), [0.02] * 3, [-2.1] * 3)
    tokens, mean, rstd = launcher.patch_shift(
        bytes_, ids_keep, weight, weight, *numbers, 1e-5, torch.bfloat16
    )
    grad = torch.empty_like(tokens)
    launcher.patch_shift_backward(
        grad, floats, ids_keep, weight, mean, rstd, *numbers, [True, True, True]
    )
