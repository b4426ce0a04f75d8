"""lrua_scan: an episode of a MANN, LSTM 200, four heads, from the gates of the inputs on.

Gradients go to the gates and to all weights; the state at the start has none. torch.compile gets
the step: a compiled episode would be all of its steps, one after the other, in one program. "bf16
products": the op alone multiplies in bf16, with fp32 state and sums; what it is compared with does
all in fp32.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks._draw import leaf, names
from benchmarks._problem import Problem
from stmeta.ops import lrua_scan
from stmeta.ops.scan.lrua_scan import lrua_scan_ref, lrua_scan_step_ref

OP = "lrua_scan"
HIDDEN, HEADS = 200, 4
BF16 = ", bf16 products"
CASES = {f"B16 T50, memory 128 x 40{kind}": (16, 50, 128, 40) for kind in ("", BF16)}
FULL = {f"B64 T100, memory 512 x 64{kind}": (64, 100, 512, 64) for kind in ("", BF16)}
OPTIONS = (0.99, True, False, True, False, 1e-8)
STATE = ("memory", "usage", "previous", "reads", "h", "c")
ORDER = ("gates", "key", "add", "recurrent", "interface", "bias", *STATE, "lengths")


def _arguments(device: str, B: int, T: int, N: int, M: int) -> dict[str, torch.Tensor]:
    fed, per_head = HIDDEN + HEADS * M, 2 * M + 2

    def weight(*shape: int) -> torch.Tensor:
        return (leaf(device, *shape).detach() * shape[-1] ** -0.5).requires_grad_()

    return {
        "gates": leaf(device, B, T, 4 * HIDDEN),
        "recurrent": weight(4 * HIDDEN, fed),
        "interface": weight(HEADS * per_head, HIDDEN),
        "bias": weight(HEADS * per_head),
        "memory": torch.full((B, N, M), 1e-6, device=device),
        "usage": torch.zeros(B, N, device=device),
        "previous": torch.zeros(B, HEADS, N, device=device),
        "reads": torch.zeros(B, HEADS * M, device=device),
        "h": torch.zeros(B, HIDDEN, device=device),
        "c": torch.zeros(B, HIDDEN, device=device),
    }


def _eager(step, **arguments):
    tensors = [arguments.get(name) for name in ORDER]
    out = lrua_scan_ref(*tensors, *OPTIONS, step=step)
    return out.y, out.memory


def _fused(products: torch.dtype, **arguments):
    for name in ("recurrent", "interface"):
        arguments[name] = arguments[name].to(products)
    out = lrua_scan(**arguments)
    return out.y, out.memory


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_lrua_scan(name, device, compare):
    problem = Problem(
        eager=partial(_eager, lrua_scan_step_ref),
        fused=partial(_fused, torch.bfloat16 if name.endswith(BF16) else torch.float32),
        compiled=lambda options: partial(_eager, torch.compile(lrua_scan_step_ref, **options)),
        arguments=_arguments(device, *(CASES | FULL)[name]),
    )
    compare(name, problem)
