"""CUDA C++ patch_shift without a GPU: compiled by nvcc, and run on the CPU by tests/cuda_host.

On a GPU: test_patch_shift_gpu.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from stmeta.ops.video._patch_shift_args import scale_offset
from tests.ops._harness.cuda_host import HostProgram, as_tensor, storage
from tests.ops._harness.nvcc import Kernel, check_kernels, compile_kernels, compile_launchers
from tests.ops.video._patch_shift_cases import CASES, Case, Inputs, Results, check, make_inputs

LARGE = Case(  # more features than 512 threads take at a time
    name="large", shape=(1, 5, 2, 32, 32), tubelet=2, patch=32, shifts="none", video=torch.float32
)
DTYPES = ("float", "__half", "__nv_bfloat16")
SHARED = ("patch_shift::slots_kernel<256>", "column_sum_kernel<8>")


def test_kernels_do_not_spill(tmp_path):
    """For compute capability 8.0; the launcher's are for 9.0."""
    names = [
        "patch_shift::forward_kernel<unsigned char, __nv_bfloat16>",
        "patch_shift::forward_kernel<float, float>",
        "patch_shift::backward_rows_kernel<unsigned char, __nv_bfloat16>",
        "patch_shift::backward_video_kernel<float, float>",
        *SHARED,
    ]
    _check(compile_kernels(names, ["patch_shift"], tmp_path, 80), names)


@pytest.mark.slow
def test_launcher_compiles(tmp_path):
    names = [
        f"patch_shift::{kernel}_kernel<{video}, {dtype}>"
        for kernel in ("forward", "backward_rows", "backward_video")
        for video in ("unsigned char", *DTYPES)
        for dtype in DTYPES
        if (kernel, video) != ("backward_video", "unsigned char")  # bytes have no gradient
    ]
    _check(compile_launchers(["patch_shift"], tmp_path, 90), [*names, *SHARED])


def _check(kernels: list[Kernel], names: list[str]) -> None:
    check_kernels(kernels, names)
    # Two blocks of 512 threads share the 65,536 registers of a multiprocessor.
    assert max(kernel.registers for kernel in kernels if "forward" in kernel.name) <= 64


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """By sanitizer; built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    kinds = ("address,undefined", "thread")
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda kind: HostProgram("patch_shift", kind, folder), kinds)
        return dict(zip(kinds, built, strict=True))


@pytest.mark.parametrize("case", [*CASES, LARGE], ids=lambda case: case.name)
def test_matches_reference(programs, case):
    inputs = make_inputs(case)
    check(inputs, _run(programs["address,undefined"], inputs))


def test_rounds_to_bfloat16(programs):
    inputs = make_inputs(replace(CASES[0], dtype=torch.bfloat16))
    check(inputs, _run(programs["address,undefined"], inputs))


def test_unaligned_video(programs):
    """One element further than the wide loads may start."""
    inputs = make_inputs(CASES[1])
    check(inputs, _run(programs["address,undefined"], inputs, before=1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_has_no_races(programs, case):
    inputs = make_inputs(case)
    check(inputs, _run(programs["thread"], inputs))


def _run(program: HostProgram, inputs: Inputs, before: int = 0) -> Results:
    """Results of the program; `before` unused elements precede the video."""
    video, weight, ids, kwargs = inputs.video, inputs.weight, inputs.ids_keep, inputs.kwargs
    batch, kept, features = inputs.grad.shape
    dtype = inputs.grad.dtype
    names = (str(kind).removeprefix("torch.") for kind in (video.dtype, dtype))
    reals = scale_offset(video, kwargs["mean"], kwargs["std"])
    data = storage(video)
    results = program.run(
        " ".join(names),
        *(video.shape, video.stride(), torch.cat([data[:before], data]), before),
        *(ids, kept, weight, inputs.bias),
        [kwargs["tubelet"], kwargs["patch"]],
        [number for offset in kwargs["shifts"] for number in offset],
        *(*reals, 1e-5, storage(inputs.grad), inputs.grad.stride()),
    )
    tokens = as_tensor(results[0], dtype, (batch, kept, features))
    sums = (None, None)
    if weight is not None:
        sums = as_tensor(results[3], torch.float32, (2, features)).unbind()
    grad_video = None
    if video.is_floating_point():
        grad_video = as_tensor(results[4], video.dtype, video.shape)
    return tokens, grad_video, *sums
