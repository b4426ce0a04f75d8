"""lrua_scan on a CPU: what its forward keeps and its backward writes over; products in bf16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stmeta.ops import availability, lrua_scan
from tests.ops.conftest import use_instruction_set
from tests.ops.scan.test_lrua_scan import SIZES, WEIGHTS, make, run

pytestmark = pytest.mark.skipif(
    bool(availability("lrua_scan")["cpu"]), reason=availability("lrua_scan")["cpu"]
)


@pytest.fixture(params=["plain", "avx2", "avx512", "bf16dot"])
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the CPU kernels; the last multiplies pairs of bf16 numbers."""
    yield from use_instruction_set(request.param)


@pytest.mark.parametrize("sizes", ["usual", "odd"])
def test_products_in_bf16(sizes, capability):
    """Against float64 with the same matrices. Eager rounds what they multiply in the forward alone,
    so our gradients may be off by one rounding more."""
    arguments = make(SIZES[sizes])
    for name in WEIGHTS[:2]:
        arguments[name] = arguments[name].bfloat16().double()
    exact = run(arguments, torch.float64, "eager")
    eager, fused = (
        run(arguments, torch.float32, backend, torch.bfloat16) for backend in ("eager", "cpu")
    )
    assert [x.dtype for x in fused] == [x.dtype for x in eager]
    for truth, plain, ours in zip(exact, eager, fused, strict=True):
        scale = float(truth.abs().max())
        error, allowed = (float((x.double() - truth).abs().max()) for x in (ours, plain))
        assert error <= 2 * allowed + 2**-7 * scale, f"{error} against {allowed}, of {scale}"


def test_products_in_bf16_compile():
    arguments = {name: x.float().requires_grad_() for name, x in make(SIZES["usual"]).items()}

    def loss(**tensors: Tensor) -> Tensor:
        matrices = {name: tensors[name].bfloat16() for name in WEIGHTS[:2]}
        return lrua_scan(**tensors | matrices).y.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (
        torch.autograd.grad(f(**arguments), [arguments["gates"], arguments["recurrent"]])
        for f in (loss, compiled)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-3)


def test_a_kept_graph_is_not_written_over():
    arguments = {name: x.float().requires_grad_() for name, x in make(SIZES["usual"]).items()}
    y = lrua_scan(**arguments).y
    wanted = [x for name, x in arguments.items() if name != "usage"]
    first = torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)
    last = torch.autograd.grad(y.square().sum(), wanted)
    for one, two, three in zip(first, again, last, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three)


def test_no_second_derivative():
    arguments = {name: x.float().requires_grad_() for name, x in make(SIZES["usual"]).items()}
    y = lrua_scan(**arguments, backend="cpu").y
    (slope,) = torch.autograd.grad(y.square().sum(), arguments["gates"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(slope.sum(), arguments["gates"])


def test_what_is_kept_is_small():
    """Of each step its gates, heads, rows and y; of the rest, a copy every sqrt(T) steps."""
    batch, steps, hidden, heads, rows, width = 2, 100, 20, 4, 16, 12
    sizes = (batch, steps, hidden, heads, rows, width)
    arguments = {name: x.float().requires_grad_() for name, x in make(sizes).items()}
    kept: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        lrua_scan(**arguments, backend="cpu")
    for x in arguments.values():
        kept.pop(x.data_ptr(), None)
    of_step = 4 * (4 * hidden + heads * (2 * width + 2) + hidden + heads * width) + 8 * heads
    of_mark = 4 * (rows * width + heads * rows + hidden)
    assert sum(kept.values()) <= batch * (steps * of_step + 10 * of_mark) + 1024
