"""patch_shift on a GPU, in CUDA C++ and in Triton, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stmeta.ops import patch_shift
from stmeta.ops._core.dispatch import availability
from tests.ops.video._patch_shift_cases import (
    CASES,
    MEAN,
    STD,
    Case,
    check,
    make_inputs,
    run_backend,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
BF16 = torch.bfloat16
REAL = (
    Case(name="small_64", shape=(8, 3, 16, 64, 64), tubelet=2, patch=8, dtype=BF16, keep=51),
    Case(name="base_224", shape=(1, 3, 4, 224, 224), tubelet=2, patch=16, video=BF16, dtype=BF16),
    Case(name="patch_32", shape=(1, 3, 2, 64, 96), tubelet=2, patch=32, video=torch.float32),
)
SMALL = {"tubelet": 2, "patch": 16, "mean": MEAN[:3], "std": STD[:3]}


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    reason = availability("patch_shift")[request.param]
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("case", [*CASES, *REAL], ids=lambda case: case.name)
def test_matches_reference(case, backend):
    inputs = make_inputs(case, "cuda")
    check(inputs, run_backend(inputs, backend))


def test_16_bit_parameters(backend):
    inputs = make_inputs(replace(REAL[0], video=BF16), "cuda")
    inputs = replace(inputs, weight=inputs.weight.to(BF16), bias=inputs.bias.to(BF16))
    check(inputs, run_backend(inputs, backend))


@pytest.mark.parametrize("case", [*CASES, *REAL], ids=lambda case: case.name)
def test_same_bits_twice(case, backend):
    inputs = make_inputs(case, "cuda")
    for first, second in zip(*(run_backend(inputs, backend) for _ in range(2)), strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("layout", ["thwc", "cthw"])
def test_video_past_2_31_elements(layout, backend):
    shape = (2300, 3, 8, 224, 224) if layout == "cthw" else (2300, 8, 224, 224, 3)  # 2.8 GB
    _needs_memory(4)
    video = torch.empty(shape, dtype=torch.uint8, device="cuda")
    video = video if layout == "cthw" else video.permute(0, 4, 1, 2, 3)
    assert video.numel() > 2**31
    video[-1].copy_(torch.randint(0, 256, video.shape[1:], dtype=torch.uint8))
    ids_keep = torch.tensor([[0, 3 * 196 + 7]], device="cuda").expand(2300, 2)
    tokens = patch_shift(video, ids_keep=ids_keep, backend=backend, **SMALL)
    exact = patch_shift(video[-1:], ids_keep=ids_keep[-1:], backend="eager", **SMALL)
    torch.testing.assert_close(tokens[-1:], exact)


def test_tokens_past_2_31_elements(backend):
    """The forward, and all three gradients, of 2.4 * 10^9 features."""
    _needs_memory(24)
    video = torch.rand(400, 3, 8, 224, 224, device="cuda", dtype=BF16).requires_grad_()
    weight, bias = (torch.rand(7680, device="cuda").requires_grad_() for _ in range(2))
    norm = {"norm_weight": weight, "norm_bias": bias}
    tokens = patch_shift(video, backend=backend, **norm, **SMALL)
    assert tokens.numel() > 2**31
    exact = patch_shift(video[-1:], backend="eager", **norm, **SMALL)
    torch.testing.assert_close(tokens[-1:], exact)

    grad = torch.zeros_like(tokens)  # only the last clip counts, so that it is all of the sum
    grad[-1].normal_()
    ours = torch.autograd.grad(tokens, (video, weight, bias), grad)
    theirs = torch.autograd.grad(exact, (video, weight, bias), grad[-1:])
    torch.testing.assert_close(ours[0][-1], theirs[0][-1])
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-3, atol=1e-2)


def test_side_stream_and_graph(backend):
    """Launches go to the current stream, and wait for nothing."""
    inputs = make_inputs(REAL[0], "cuda")
    expected = run_backend(inputs, backend)[0]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_backend(inputs, backend)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = run_backend(inputs, backend)[0]
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_device_that_is_not_current(backend):
    inputs = make_inputs(CASES[0], "cuda:1")
    assert torch.cuda.current_device() == 0
    check(inputs, run_backend(inputs, backend))


def _needs_memory(gib: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free / 2**30:.0f} are free")
