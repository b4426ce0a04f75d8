"""Triton's memory ops in Triton's interpreter; run by test_memory_triton.py.

The interpreter is wrong in bf16. A case runs as one launch, and in tiles of a few rows.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from stmeta.kernels.triton.memory._common import TILES

from tests.ops._harness import (
    MEMORY_OPS,
    case_of_zero,
    check,
    in_triton,
    load,
    make_inputs,
    run_backend,
    sizes_of_zero,
)
from tests.ops._harness.interpreter import prepared_once

__all__ = ["prepared_once"]  # a fixture of all tests here

# Gradients of rows of zeros pass the largest fp16, as they do in eager.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
NAMES = in_triton(MEMORY_OPS)
OPS = {name: load(name) for name in NAMES}
LARGE = ("usual", "usual_read_last", "aligned", "long")  # seconds each: in fp32, not in tiles
CASES = [
    pytest.param(op, case, dtype, tiles, id=f"{op.name}-{case.name}-{str(dtype)[6:]}-{tiles}")
    for op in OPS.values()
    for case in op.cases
    for dtype, tiles in (
        (torch.float32, "whole"),
        (torch.float32, "tiled"),
        (torch.float16, "whole"),
    )
    if case.name not in LARGE or (dtype, tiles) == (torch.float32, "whole")
]


@pytest.fixture(autouse=True)
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 numbers, unless the test says "whole"."""
    if request.node.callspec.params["tiles"] == "whole":
        return
    monkeypatch.setattr("stmeta.kernels.triton.memory._common.TILE", 32)
    monkeypatch.setattr("stmeta.kernels.triton.memory.allocation.CHUNK", 4)
    for name in NAMES:
        module = importlib.import_module(f"stmeta.kernels.triton.memory.{name}")
        for room in {"FORWARD", "BACKWARD"} & set(vars(module)):
            monkeypatch.setattr(module, room, TILES)


@pytest.mark.parametrize(("op", "case", "dtype", "tiles"), CASES)
def test_matches_reference(op, case, dtype, tiles):
    inputs = make_inputs(op, case, dtype)
    check(inputs, run_backend(inputs, "triton"), case.factor)


@pytest.mark.parametrize("tiles", ["whole", "tiled"])
@pytest.mark.parametrize(("name", "size"), sizes_of_zero(NAMES))
def test_sizes_of_zero(name, size, tiles):
    inputs = make_inputs(OPS[name], case_of_zero(OPS[name], size))
    check(inputs, run_backend(inputs, "triton"), factor=4.0)


@pytest.mark.parametrize("tiles", ["whole", "tiled"])
@pytest.mark.parametrize("layout", ["transposed", "stepped", "expanded"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_layouts(op, layout, tiles):
    """Any strides; inputs are not written to."""
    case = next(case for case in op.cases if case.name in ("odd", "five_taps"))
    grad_layout = {"expanded": "sum"}.get(layout, layout)
    inputs = make_inputs(op, case, layout=layout, grad_layout=grad_layout)
    tensors = [x for x in inputs.arguments.values() if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in tensors]
    results = run_backend(inputs, "triton")
    check(inputs, results, case.factor)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    memory = {x.untyped_storage().data_ptr() for x in tensors}
    assert not any(x.untyped_storage().data_ptr() in memory for x in results.values())
