"""CUDA C++ memory ops without a GPU: compiled by nvcc, and run on the CPU by tests/cuda_host.

On a GPU: test_ops_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops._harness import (
    Inputs,
    Results,
    case_of_zero,
    check,
    load,
    make_inputs,
    sizes_of_zero,
)
from tests.ops._harness.cuda_host import HostProgram, HostProgramError, as_tensor, storage
from tests.ops._harness.nvcc import Kernel, check_kernels, compile_kernels, compile_launchers

ADDRESS, THREAD = "address", "thread"
DTYPES = ("float", "__half", "__nv_bfloat16")
LAUNCHES = {  # kernels of csrc/cuda by op
    "memory_read": ("forward_kernel", "backward_kernel"),
    "content_addressing": (
        "rows_kernel",
        "softmax_kernel",
        "softmax_backward_kernel",
        "backward_kernel",
    ),
    "location_addressing": ("forward_kernel", "backward_kernel"),
    "erase_add": ("forward_kernel", "backward_kernel"),
    "ntm_step": (
        *("whole_kernel", "score_kernel", "address_kernel", "write_kernel"),
        *(
            "whole_backward_kernel",
            "write_backward_kernel",
            "address_backward_kernel",
            "score_backward_kernel",
        ),
    ),
    "lrua_step": (
        *("whole_kernel", "least_kernel", "score_kernel", "address_kernel", "read_kernel"),
        *("whole_backward_kernel", "read_backward_kernel", "address_backward_kernel", "end_kernel"),
    ),
    "allocation": ("forward_kernel", "backward_kernel"),
    "temporal_link": ("forward_kernel", "backward_kernel", "finish_kernel"),
}
OPS = tuple(LAUNCHES)  # another op has a test_<op>_cuda.py of its own
SUMS = ("memory_read", "content_addressing", "erase_add", "ntm_step", "lrua_step")  # over tiles
SMALL = [  # by name, as a case of many rows takes seconds on one thread for each CUDA thread
    *(("memory_read", name) for name in ("odd", "few_rows", "many_heads", "empty", "one_row_each")),
    *(("content_addressing", name) for name in ("odd", "one_row", "few_rows", "empty", "found")),
    *(("content_addressing", name) for name in ("zero_rows_large_eps", "zero_key_large_eps")),
    *(("location_addressing", name) for name in ("five_taps", "one_row", "empty", "moved")),
    *(("location_addressing", name) for name in ("a_tap_for_each_row", "one_hot_sharpen_1")),
    *(("location_addressing", name) for name in ("negative", "negative_sharpen_1", "nowhere")),
    *(("location_addressing", name) for name in ("one_tap", "sharpen_20")),
    *(("erase_add", name) for name in ("odd", "one", "no_rows_to_share", "empty", "whole")),
    *(("ntm_step", name) for name in ("odd", "overlap", "idle_head", "one_row", "few_rows")),
    *(("ntm_step", name) for name in ("empty", "gate_0", "gate_1", "sharpen_20")),
    *(("lrua_step", name) for name in ("shared_read_last", "odd", "every_row", "one_row")),
    *(("lrua_step", name) for name in ("empty", "ties_shared", "gate_0", "gate_1")),
    *(("allocation", name) for name in ("odd", "ties", "free_or_used", "extreme", "one_row")),
    *(("allocation", name) for name in ("full", "long", "no_rows", "empty")),
    *(("temporal_link", name) for name in ("odd", "aligned", "few_rows", "one_row", "diagonal")),
    *(("temporal_link", name) for name in ("idle", "no_rows", "empty")),
]
FEW_ROWS = ("one", "one_row", "few_rows", "no_rows_to_share", "every_row", "empty", "no_rows")
TILES = (0, 3)  # a whole element in a block; tiles of three rows
CALLS = [(*call, tile) for call in SMALL for tile in TILES if not tile or call[1] not in FEW_ROWS]

SEVERAL_WARPS = {"batch": 1, "rows": 12, "heads": 4, "width": 40}

Program = Callable[[str, str], HostProgram]


@pytest.mark.parametrize("dtype", ["float", pytest.param("__nv_bfloat16", marks=pytest.mark.slow)])
def test_kernels_do_not_spill(dtype, tmp_path):
    """For compute capability 8.0; the launchers' are for 9.0."""
    names = {name for op in LAUNCHES for name in _kernels(op, dtype)}
    headers = [*OPS, "ntm_step_backward", "lrua_step_backward"]
    kernels = compile_kernels(sorted(names), headers, tmp_path, 80)
    check_kernels(kernels, names, registers=128)  # 512 threads share 65,536


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> list[Kernel]:
    """Kernels of all launchers."""
    return compile_launchers(OPS, tmp_path_factory.mktemp("launchers"), 90)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_launcher_compiles(launched, op):
    names = [name for dtype in DTYPES for name in _kernels(op, dtype)]
    check_kernels(launched, names, registers=128)


def _kernels(op: str, dtype: str) -> list[str]:
    own = [f"{op}::{kernel}<{dtype}>" for kernel in LAUNCHES[op]]
    return [*own, f"memory::finish_kernel<{dtype}>"] if op in SUMS else own


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """By op and sanitizer; all built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    keys = [(op, kind) for op in reversed(OPS) for kind in (ADDRESS, THREAD)]
    with ThreadPoolExecutor() as pool:
        programs = pool.map(lambda key: HostProgram(key[0], key[1], folder), keys)
        built = dict(zip(keys, programs, strict=True))
    return lambda op, kind: built[op, kind]


@pytest.mark.parametrize(("name", "case", "tile"), CALLS)
def test_matches_reference(program, name, case, tile):
    inputs = _inputs(name, case)
    # x^20 makes 20 roundings of each one in x, which eager's error shows or not, as luck has it.
    factor = 4.0 if case == "sharpen_20" else 2.0
    check(inputs, _run(program(name, ADDRESS), inputs, tile), factor)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", OPS)
def test_has_no_races(program, name, tile):
    case = {"location_addressing": "five_taps", "lrua_step": "shared_read_last"}.get(name, "odd")
    inputs = _inputs(name, case, torch.bfloat16)
    check(inputs, _run(program(name, THREAD), inputs, tile))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("name", "case"), [("ntm_step", "overlap"), ("lrua_step", "odd")])
def test_reading_first_has_no_races(program, name, case, tile):
    inputs = _inputs(name, case, torch.bfloat16)
    check(inputs, _run(program(name, THREAD), inputs, tile))


@pytest.mark.parametrize(("kind", "dtype"), [(ADDRESS, torch.float32), (THREAD, torch.bfloat16)])
@pytest.mark.parametrize("name", OPS)
def test_several_warps(program, name, kind, dtype):
    """16-byte loads; as many threads as the size tells."""
    op = load(name)
    sizes = {key: high for key, (_, high) in op.sizes.items()}
    sizes |= {k: v for k, v in SEVERAL_WARPS.items() if k in sizes}
    inputs = make_inputs(op, op.sized(**sizes), dtype)
    check(inputs, _run(program(name, kind), inputs, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_usual_size(program, name):
    """Sixteen warps."""
    inputs = _inputs(name, "usual")
    check(inputs, _run(program(name, ADDRESS), inputs, 0))


@pytest.mark.parametrize("name", [name for name in OPS if "width" in load(name).sizes])
def test_large_rows_and_many_heads(program, name):
    """More columns and more heads than threads hold at a time."""
    op = load(name)
    sizes = {key: high for key, (_, high) in op.sizes.items()}
    inputs = make_inputs(op, op.sized(**sizes | {"batch": 1, "width": 140, "heads": 6, "rows": 8}))
    for tile in TILES:
        check(inputs, _run(program(name, ADDRESS), inputs, tile), factor=4.0)  # numbers at random


@pytest.mark.parametrize("layout", ["transposed", "sliced", "stepped", "expanded"])
@pytest.mark.parametrize("name", ["erase_add", "ntm_step", "lrua_step", "temporal_link"])
def test_layouts(program, name, layout):
    """Strides of the memory and of its gradient."""
    op = load(name)
    case = next(case for case in op.cases if case.name == "odd")
    grad_layout = "sum" if layout == "expanded" else layout
    inputs = make_inputs(op, case, layout=layout, grad_layout=grad_layout)
    check(inputs, _run(program(name, ADDRESS), inputs, 3))


@pytest.mark.parametrize(("name", "size"), sizes_of_zero(OPS))
def test_sizes_of_zero(program, name, size):
    """Nothing is read or written that is not there, and no launch has an empty grid."""
    op = load(name)
    inputs = make_inputs(op, case_of_zero(op, size))
    for tile in TILES:
        check(inputs, _run(program(name, ADDRESS), inputs, tile), factor=4.0)


def test_too_many_heads(program):
    """The error names what to use instead."""
    op = load("memory_read")
    inputs = make_inputs(op, op.sized(batch=1, rows=2, width=4, heads=17))
    with pytest.raises(HostProgramError, match=r"memory_read: .* got 17 heads .* use 'triton'"):
        _run(program("memory_read", ADDRESS), inputs, 0)


def _inputs(name: str, case: str, dtype: torch.dtype = torch.float32) -> Inputs:
    op = load(name)
    return make_inputs(op, next(c for c in op.cases if c.name == case), dtype)


def _matrix(x: Tensor) -> tuple[Any, ...]:
    return storage(x), x.stride()


def _run(program: HostProgram, inputs: Inputs, tile: int) -> Results:
    """Outputs and gradients, as the harness names them."""
    a, grads, name = inputs.arguments, inputs.grads, inputs.op.name
    items, heads = _ITEMS[name](a, grads or _zeros(inputs))
    sizes = [*a["memory"].shape, heads] if "memory" in a else _sizes(a, heads)
    results = program.run(str(inputs.dtype).removeprefix("torch."), sizes, tile, *items)
    outputs = _outputs(inputs)
    shapes = [*outputs.values(), *(a[leaf] for leaf in _LEAVES[name])]
    names = [*outputs, *(f"grad {leaf}" for leaf in _LEAVES[name])]
    tensors = [
        as_tensor(raw, like.dtype, like.shape) for raw, like in zip(results, shapes, strict=True)
    ]
    wanted = {*outputs, *(f"grad {leaf}" for leaf in inputs.leaves)}
    return {key: x for key, x in zip(names, tensors, strict=True) if key in wanted}


def _sizes(a: dict[str, Any], heads: int) -> list[int]:
    """B, N, M, heads of an op that sees no memory: its first argument ends in N."""
    first = next(iter(a.values()))
    return [first.shape[0], first.shape[-1], 0, heads]


def _outputs(inputs: Inputs) -> Results:
    """Tensors like the outputs."""
    outputs = inputs.op.reference(**inputs.arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return dict(zip(inputs.op.outputs, outputs, strict=True))


def _zeros(inputs: Inputs) -> Results:
    return {name: torch.zeros_like(x) for name, x in _outputs(inputs).items()}


def _eps(a: dict[str, Any]) -> float:
    return float(a.get("eps", 1e-6))


_LEAVES = {  # in the order of the programs' results
    "memory_read": ("memory", "weight"),
    "content_addressing": ("memory", "key", "strength"),
    "location_addressing": ("content", "previous", "gate", "shift", "sharpen"),
    "erase_add": ("memory", "weight", "erase", "add"),
    "ntm_step": (
        *("memory", "previous", "key", "strength", "gate", "shift", "sharpen", "erase", "add"),
    ),
    "lrua_step": ("memory", "previous", "key", "strength", "gate", "add"),
    "allocation": ("usage",),
    "temporal_link": ("link", "precedence", "write_weight"),
}
Items = tuple[list[Any], int]  # what the program reads after the tile; number of heads


def _memory_read(a: dict[str, Any], g: Results) -> Items:
    return [*_matrix(a["memory"]), a["weight"], g["read"]], a["weight"].shape[1]


def _content_addressing(a: dict[str, Any], g: Results) -> Items:
    items = [*_matrix(a["memory"]), a["key"], a["strength"], _eps(a), g["weight"]]
    return items, a["key"].shape[1]


def _location_addressing(a: dict[str, Any], g: Results) -> Items:
    items = [a[leaf] for leaf in _LEAVES["location_addressing"]]
    return [*items, g["weight"], a["shift"].shape[2]], a["content"].shape[1]


def _erase_add(a: dict[str, Any], g: Results) -> Items:
    items = [*_matrix(a["memory"]), a["weight"], a["erase"], a["add"], *_matrix(g["memory"])]
    return items, a["weight"].shape[1]


def _ntm_step(a: dict[str, Any], g: Results) -> Items:
    options = [a["shift"].shape[2], a["reads"], a["erase"].shape[1], int(a["read_first"])]
    items = [*_matrix(a["memory"]), *(a[leaf] for leaf in _LEAVES["ntm_step"][1:])]
    grads = [*_matrix(g["memory"]), g["weight"], g["read"]]
    return [*items, options, _eps(a), *grads], a["key"].shape[1]


def _lrua_step(a: dict[str, Any], g: Results) -> Items:
    items = [*_matrix(a["memory"]), a["usage"], *(a[x] for x in _LEAVES["lrua_step"][1:])]
    options = [int(a.get("read_first", True)), int(a.get("shared", False))]
    grads = [*_matrix(g["memory"]), g["weight"], g["read"]]
    return [*items, float(a.get("decay", 0.99)), options, _eps(a), *grads], a["key"].shape[1]


def _allocation(a: dict[str, Any], g: Results) -> Items:
    return [a["usage"], g["allocation"]], 1


def _temporal_link(a: dict[str, Any], g: Results) -> Items:
    items = [*_matrix(a["link"]), a["precedence"], a["write_weight"]]
    return [*items, *_matrix(g["link"]), g["precedence"]], a["precedence"].shape[1]


_ITEMS = {
    "memory_read": _memory_read,
    "content_addressing": _content_addressing,
    "location_addressing": _location_addressing,
    "erase_add": _erase_add,
    "ntm_step": _ntm_step,
    "lrua_step": _lrua_step,
    "allocation": _allocation,
    "temporal_link": _temporal_link,
}
