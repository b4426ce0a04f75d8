"""CUDA C++ locality_attention without a GPU: compiled by nvcc, and run on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.ops._harness import Case, check, load, make_inputs
from tests.ops._harness.cuda_host import HostProgram, as_tensor, storage
from tests.ops._harness.nvcc import check_kernels, compile_kernels, compile_launchers
from tests.ops.video.test_locality_attention import make

OP = load("locality_attention")
DTYPES = ("float", "__half", "__nv_bfloat16")
SMALL = [case for case in OP.cases if case.name in ("odd", "plain", "two", "lone", "sharp")]


def test_kernels_do_not_spill(tmp_path):
    """For compute capability 8.0; the launcher's are for 9.0."""
    names = _kernels((1, 2, 4, 8), ("float", "__nv_bfloat16"))
    check_kernels(compile_kernels(names, ["locality_attention"], tmp_path, 80), names)


@pytest.mark.slow
def test_launcher_compiles(tmp_path):
    kernels = compile_launchers(["locality_attention"], tmp_path, 90)
    check_kernels(kernels, _kernels((1, 2, 4, 8), DTYPES))


def _kernels(splits: tuple[int, ...], dtypes: tuple[str, ...]) -> list[str]:
    names = [
        f"locality_attention::{kernel}_kernel<{split}, {dtype}>"
        for kernel in ("forward", "know", "backward_keys", "backward_queries")
        for split in splits
        for dtype in dtypes
    ]
    return [*names, "column_sum_kernel<8>"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """By sanitizer; built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    kinds = ("address,undefined", "thread")
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda kind: HostProgram("locality_attention", kind, folder), kinds)
        return dict(zip(kinds, built, strict=True))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_reference(programs, case, dtype):
    inputs = make_inputs(OP, case, dtype)
    check(inputs, _run(programs["address,undefined"], inputs))


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
def test_takes_any_strides(programs, layout):
    inputs = make_inputs(OP, OP.cases[2], layout=layout)
    check(inputs, _run(programs["address,undefined"], inputs))


@pytest.mark.parametrize("case", SMALL[1:3], ids=lambda case: case.name)
def test_has_no_races(programs, case):
    inputs = make_inputs(OP, case)
    check(inputs, _run(programs["thread"], inputs))


def test_gradient_of_the_temperature(programs):
    inputs = make_inputs(OP, OP.cases[2])
    temperature = inputs.arguments["temperature"].double().requires_grad_()
    qkv = inputs.arguments["qkv"].double()
    out = OP.reference(qkv, temperature)
    (wanted,) = torch.autograd.grad(out, temperature, inputs.grads["out"].double())
    found = _run(programs["address,undefined"], inputs, temperature=True)["grad temperature"]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_more_clips_and_heads_than_fit_one_axis_of_a_grid(programs):
    """65,544 of them; a GPU takes 65,535 blocks along y."""
    case = Case(name="many", make=lambda g: make(g, 5462, 1, 12, 1), fp32=("temperature",))
    _run(programs["address,undefined"], make_inputs(OP, case), options={"check_only": True})


def _run(program, inputs, temperature: bool = False, options: dict | None = None):
    qkv = inputs.arguments["qkv"]
    if qkv.stride(4) != 1:  # as the launcher does
        qkv = qkv.contiguous()
    out, grad_qkv, grad_temperature = program.run(
        str(qkv.dtype)[6:],
        *(qkv.shape, qkv.stride(), storage(qkv)),
        inputs.arguments["temperature"].contiguous(),
        inputs.grads["out"].contiguous(),
        int(inputs.arguments["exclude_self"]),
        **(options or {}),
    )
    batch, tokens, _, heads, width = qkv.shape
    results = {
        "out": as_tensor(out, qkv.dtype, (batch, tokens, heads, width)),
        "grad qkv": as_tensor(grad_qkv, qkv.dtype, qkv.shape),
    }
    if temperature:
        results["grad temperature"] = as_tensor(grad_temperature, torch.float32, heads)
    return results
