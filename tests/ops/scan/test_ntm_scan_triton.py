"""Triton's ntm_scan without a GPU: interpreted against the reference, compiled for real targets."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from stmeta.ops.scan._common import num_checkpoints
from tests.ops._harness.triton_aot import compile_launches, run_interpreted

SIZES = {  # B, T, H, R, W, N, M
    "usual": (16, 50, 100, 1, 1, 128, 20),
    "largest": (16, 50, 256, 2, 2, 128, 64),
    "one": (1, 1, 1, 1, 1, 1, 1),
}
OPTIONS = {  # taps, read_first, tanh_key, tanh_add; lengths; K > H
    "usual": (3, True, False, False, False, True),
    "all": (5, False, True, True, True, True),
    "blind": (1, True, False, True, False, False),
}
CASES = [
    *product((80, 90, 100), ("usual", "largest"), OPTIONS),
    (90, "one", "blind"),
]


def test_interpreter():
    run_interpreted("ntm_scan")


@pytest.mark.parametrize(("target", "sizes", "options"), CASES)
def test_does_not_spill(target, sizes, options):
    kernels = compile_launches(lambda: launch(SIZES[sizes], *OPTIONS[options]), target)
    assert [kernel.name for kernel in kernels] == ["_ntm_scan_fwd_kernel", "_ntm_scan_bwd_kernel"]
    assert [kernel for kernel in kernels if kernel.stack] == []


@pytest.mark.parametrize("sizes", [(1, 2, 8, 1, 1, 256, 40), (1, 2, 8, 30, 3, 128, 8)], ids=str)
def test_too_large(sizes):
    """The memory, or the weights of all heads."""
    _, _, _, reading, writing, rows, width = sizes
    match = rf"ntm_scan: .*N \* M.* at most 8192.*got {reading + writing} heads, \[N, M\] = "
    with pytest.raises(ValueError, match=match + rf"\[{rows}, {width}\].*use 'cuda' or 'eager'"):
        launch(sizes, *OPTIONS["usual"])


def launch(sizes: tuple[int, ...], taps: int, *options: bool) -> None:
    """Both kernels, on tensors of no device."""
    from stmeta.kernels.triton.scan import ntm_scan as module

    batch, steps, hidden, reading, writing, rows, width = sizes
    *flags, ends, fed = options
    heads, read = reading + writing, reading * width
    numbers = heads * (width + 3 + taps) + 2 * writing * width

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    recurrent = meta(4 * hidden, hidden + (read if fed else 0))
    interface = meta(numbers, hidden)
    lengths = meta(batch, dtype=torch.int64) if ends else None
    memory, weights = meta(batch, rows, width), meta(batch, heads, rows)
    h, scan = meta(batch, hidden), (taps, *flags, 1e-6)
    out = module.ntm_scan(
        *(meta(batch, steps, 4 * hidden), recurrent, interface, meta(numbers)),
        *(memory, weights, meta(batch, read), h, h, lengths, *scan),
    )
    assert out[8].shape[1] == num_checkpoints(steps)
    inputs = (recurrent, interface, weights, h, lengths)
    module.ntm_scan_backward(out[0], memory, weights, h, *inputs, *out[4:], *scan)
