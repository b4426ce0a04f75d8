"""Triton's lrua_scan without a GPU: interpreted against the reference, compiled for real targets.

On a GPU: test_lrua_scan_cuda.py.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from stmeta.ops.scan._common import num_checkpoints
from tests.ops._harness.triton_aot import compile_launches, run_interpreted

USUAL = (16, 50, 200, 4, 128, 40)  # B, T, H, R, N, M
SIZES = {"usual": USUAL, "largest": (16, 50, 256, 4, 128, 64), "one": (1, 1, 1, 1, 1, 1)}
OPTIONS = {  # read_first, shared, strength, write_key; extra keys and vectors; lengths; K > H
    "usual": (True, False, True, False, False, False, True),
    "paper": (False, True, False, True, False, False, True),
    "all": (False, False, True, True, True, True, True),
    "blind": (True, False, True, False, True, True, False),
}
CASES = [
    *product((80, 90, 100), ("usual", "largest"), OPTIONS),
    (90, "one", "blind"),
]


def test_interpreter():
    run_interpreted("lrua_scan")


@pytest.mark.parametrize(("target", "sizes", "options"), CASES)
def test_does_not_spill(target, sizes, options):
    kernels = compile_launches(lambda: launch(SIZES[sizes], *OPTIONS[options]), target)
    assert [kernel.name for kernel in kernels] == ["_lrua_scan_fwd_kernel", "_lrua_scan_bwd_kernel"]
    assert [kernel for kernel in kernels if kernel.stack] == []


def test_too_large():
    with pytest.raises(
        ValueError, match=r"N \* M.* at most 8192.*got 4 heads, \[N, M\] = \[256, 40"
    ):
        launch((1, 2, 8, 4, 256, 40), *OPTIONS["usual"])


def launch(sizes: tuple[int, ...], *options: bool) -> None:
    """Both kernels, on tensors of no device."""
    from stmeta.kernels.triton.scan import lrua_scan as module

    batch, steps, hidden, heads, rows, width = sizes
    *flags, extra, ends, fed = options
    numbers = heads * ((1 if flags[3] else 2) * width + 2)
    vectors = heads * width

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    recurrent = meta(4 * hidden, hidden + (vectors if fed else 0))
    interface = meta(numbers, hidden)
    extras = meta(batch, steps, heads, width) if extra else None
    lengths = meta(batch, dtype=torch.int64) if ends else None
    memory, usage = meta(batch, rows, width), meta(batch, rows)
    previous, h = meta(batch, heads, rows), meta(batch, hidden)
    scan = (0.99, *flags, 1e-6)
    out = module.lrua_scan(
        *(meta(batch, steps, 4 * hidden), extras, extras, recurrent, interface, meta(numbers)),
        *(memory, usage, previous, meta(batch, vectors), h, h, lengths, *scan),
    )
    assert out[10].shape[1] == num_checkpoints(steps)
    weights = (extras, recurrent, interface)
    module.lrua_scan_backward(
        *(out[0], memory, previous, h, *weights, memory, previous, h, lengths, *out[5:], *scan)
    )
