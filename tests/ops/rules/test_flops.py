"""torch's counter of operations sees fused ops, and counts what eager multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stmeta.ops import availability
from stmeta.ops._core.flops import FORMULAS
from tests.ops._harness.derivatives import CALLS, Call

NAMES = [name for name in CALLS if name != "locality_attention-170"]  # SDPA is not counted on CPUs


def counts(call: Call, backend: str) -> tuple[int, int]:
    """Of the forward, and of the backward to every leaf."""
    leaves = {
        name: call.arguments[name].float().requires_grad_()
        for name in call.leaves
        if name in call.arguments
    }
    with FlopCounterMode(display=False) as forward:
        out = call.run(leaves, torch.float32, backend=backend)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), [*leaves.values()], materialize_grads=True)
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_counts_what_eager_multiplies(name):
    call = CALLS[name]
    if availability(call.op.__name__)["cpu"]:
        pytest.skip(availability(call.op.__name__)["cpu"])
    fused, eager = counts(call, "cpu"), counts(call, "eager")
    assert fused[0] == eager[0]
    assert (fused[0] > 0) == (call.op.__name__ in FORMULAS)
    # lrua_scan's gradient of `recurrent` is one product of all rows but the first, and an
    # `addmm_` in place, which torch does not count.
    scan = call.op.__name__ == "lrua_scan"
    uncounted = 2 * call.arguments["recurrent"].numel() if scan else 0
    assert fused[1] == eager[1] - uncounted


def test_a_counter_of_inference_and_of_a_module():
    """Without autograd, and by module."""
    layer = torch.nn.Module()
    weight = torch.randn(3, 40)
    call = CALLS["memory_read"]
    arguments = {name: x.float() for name, x in call.arguments.items()}

    def forward(*_: Tensor) -> Tensor:
        return call.op(**arguments)

    layer.forward = forward
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        layer(weight)
    memory = arguments["memory"]
    assert counter.get_total_flops() == 2 * memory.numel() * arguments["weight"].shape[1]
    assert counter.get_flop_counts()["Module"] == counter.get_flop_counts()["Global"]


def test_a_formula_of_the_user_goes_first():
    call = CALLS["memory_read"]
    arguments = {name: x.float() for name, x in call.arguments.items()}
    custom = {torch.ops.stmeta.memory_read: lambda *shapes, out_shape, **_: 7}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        call.op(**arguments, backend="cpu")
    assert counter.get_total_flops() == 7
