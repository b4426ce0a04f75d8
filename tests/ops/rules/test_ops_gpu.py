"""Every fused op on a GPU, in CUDA C++ and in Triton, against the float64 reference.

The cases lie in tests/ops/cases, the rule in tests/ops/_harness/__init__.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.ops._harness import (
    ALL_OPS,
    FLOATS,
    GRAD_LAYOUTS,
    LAYOUTS,
    TOKEN_OPS,
    Inputs,
    check,
    choose,
    load,
    make_inputs,
    run_backend,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
OPS = {name: load(name) for name in ALL_OPS}
DTYPED = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype)[6:]}")
    for op in OPS.values()
    for case in (*op.cases, *op.real)
    for dtype in op.dtypes
]
SHARED = ("pos", "mask_token", "bias", "norm_weight", "norm_bias", "temperature")  # no batch
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each fused backend that takes CUDA tensors; skips with the reason."""
    return choose(request.getfixturevalue("op"), request.param).name


@pytest.mark.parametrize(("op", "case", "dtype"), DTYPED)
def test_matches_reference(op, case, dtype, backend):
    inputs = make_inputs(op, case, dtype, "cuda")
    check(inputs, run_backend(inputs, backend))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_op
def test_layouts(op, layout, dtype, backend):
    if dtype not in op.dtypes:
        pytest.skip(f"{op.name} takes {op.dtypes}")
    inputs = make_inputs(op, op.cases[0], dtype, "cuda", layout=layout)
    tensors = [x for x in inputs.arguments.values() if isinstance(x, Tensor)]
    before = [x.clone() for x in tensors]
    check(inputs, run_backend(inputs, backend))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("layout", GRAD_LAYOUTS)
@every_op
def test_layouts_of_the_gradient(op, layout, backend):
    inputs = make_inputs(op, op.cases[0], device="cuda", grad_layout=layout)
    check(inputs, run_backend(inputs, backend))


@every_op
def test_same_bits_twice(op, backend):
    inputs = make_inputs(op, op.real[-1], device="cuda")
    first, second = (run_backend(inputs, backend) for _ in range(2))
    assert [name for name, x in first.items() if not torch.equal(second[name], x)] == []


@every_op
def test_side_stream_and_graph(op, backend):
    """Launches go to the current stream and wait for nothing, forward and backward."""
    inputs = make_inputs(op, op.cases[0], op.dtypes[-1], "cuda")
    expected = run_backend(inputs, backend)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_backend(inputs, backend)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = run_backend(inputs, backend)
    for x in captured.values():
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert [name for name, x in captured.items() if not torch.equal(x, expected[name])] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
@every_op
def test_device_that_is_not_current(op, backend):
    inputs = make_inputs(op, op.cases[0], device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(inputs, run_backend(inputs, backend))


LARGEST = {  # op -> the argument whose row is as large as that of its largest tensor
    "gather_tokens": "x",
    "restore_tokens": "pos",
    "masked_patch_loss": "pred",
    "shifted_patch_embed": "video",
    "content_addressing": "memory",
    "memory_read": "memory",
    "erase_add": "memory",
    "ntm_step": "memory",
    "lrua_step": "memory",
    "temporal_link": "link",
    "locality_attention": "qkv",
}


@pytest.mark.parametrize("op", [OPS[name] for name in LARGEST], ids=LARGEST)
def test_past_2_31_elements(op, backend):
    """The last row of a batch so large that its offset needs 64 bits, forward and backward."""
    free, _ = torch.cuda.mem_get_info()
    if free < 60 * 2**30:
        pytest.skip(f"needs 60 GiB of GPU memory, {free / 2**30:.0f} are free")
    case = op.real[-1]
    last = last_row(make_inputs(op, case, torch.bfloat16, "cuda"))
    batch = 2**31 // last.arguments[LARGEST[op.name]].numel() + 2
    results = run_backend(grow(last, batch), backend)
    check(last, {name: x[-1:] if x.shape[:1] == (batch,) else x for name, x in results.items()})


def last_row(inputs: Inputs) -> Inputs:
    """The same call for the last row of the batch alone."""

    def cut(name: str, x):
        return x[-1:] if batched(inputs, name, x) else x

    arguments = {name: cut(name, x) for name, x in inputs.arguments.items()}
    grads = {name: x[-1:] if x.dim() else x for name, x in inputs.grads.items()}
    return replace(inputs, arguments=arguments, grads=grads)


def grow(inputs: Inputs, batch: int) -> Inputs:
    """Zeros before the one row that there is; ids are the same in all rows."""

    def fill(x: Tensor) -> Tensor:
        if x.dtype == torch.int64:
            return x.expand(batch, *x.shape[1:]).contiguous()
        large = x.new_zeros(batch, *x.shape[1:])
        large[-1:] = x
        return large

    arguments = {
        name: fill(x) if batched(inputs, name, x) else x for name, x in inputs.arguments.items()
    }
    grads = {name: fill(x) if x.dim() else x for name, x in inputs.grads.items()}
    return replace(inputs, arguments=arguments, grads=grads)


def batched(inputs: Inputs, name: str, x) -> bool:
    """Whether an argument has a row for each of the batch."""
    shared = name in SHARED or (name == "weight" and inputs.op.name in TOKEN_OPS)
    return isinstance(x, Tensor) and not shared
