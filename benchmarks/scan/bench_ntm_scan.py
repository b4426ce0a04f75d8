"""ntm_scan: a sequence of an NTM, LSTM 100, from the gates of the inputs on.

Gradients go to the gates and to all weights; the state at the start has none. torch.compile gets
the step: a compiled sequence would be all of its steps, one after the other, in one program.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks._draw import leaf, names
from benchmarks._problem import Problem
from stmeta.ops import ntm_scan
from stmeta.ops.memory.content_addressing import EPS
from stmeta.ops.scan.ntm_scan import ntm_scan_ref, ntm_scan_step_ref

OP = "ntm_scan"
HIDDEN, TAPS = 100, 3
# B, T, R, W, N, M
CASES = {"B16 T50, memory 128 x 20, 1 + 1 heads": (16, 50, 1, 1, 128, 20)}
FULL = {"B64 T100, memory 512 x 64, 4 + 4 heads": (64, 100, 4, 4, 512, 64)}
OPTIONS = (TAPS, True, False, False, EPS)
STATE = ("memory", "weights", "reads", "h", "c")
ORDER = ("gates", "recurrent", "interface", "bias", *STATE, "lengths")


def _arguments(
    device: str, B: int, T: int, R: int, W: int, N: int, M: int
) -> dict[str, torch.Tensor]:
    numbers = (R + W) * (M + 3 + TAPS) + 2 * W * M

    def weight(*shape: int) -> torch.Tensor:
        return (leaf(device, *shape).detach() * shape[-1] ** -0.5).requires_grad_()

    return {
        "gates": leaf(device, B, T, 4 * HIDDEN),
        "recurrent": weight(4 * HIDDEN, HIDDEN + R * M),
        "interface": weight(numbers, HIDDEN),
        "bias": weight(numbers),
        "memory": torch.full((B, N, M), 1e-6, device=device),
        "weights": torch.softmax(torch.randn(B, R + W, N, device=device), 2),
        "reads": torch.zeros(B, R * M, device=device),
        "h": torch.zeros(B, HIDDEN, device=device),
        "c": torch.zeros(B, HIDDEN, device=device),
    }


def _eager(step, **arguments):
    out = ntm_scan_ref(*(arguments.get(name) for name in ORDER), *OPTIONS, step=step)
    return out.y, out.memory


def _fused(**arguments):
    out = ntm_scan(**arguments)
    return out.y, out.memory


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_ntm_scan(name, device, compare):
    problem = Problem(
        eager=partial(_eager, ntm_scan_step_ref),
        fused=_fused,
        compiled=lambda options: partial(_eager, torch.compile(ntm_scan_step_ref, **options)),
        arguments=_arguments(device, *(CASES | FULL)[name]),
    )
    compare(name, problem)
