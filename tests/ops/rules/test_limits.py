"""`auto` never does worse than eager: what a kernel cannot take, eager takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta import ops
from stmeta._errors import BackendUnavailableError
from stmeta.ops import availability, resolve
from stmeta.ops._core import limits as _limits
from stmeta.ops._core.dispatch import registered_ops
from stmeta.ops._core.limits import LIMITS
from tests.ops._harness import load
from tests.ops.scan import test_lrua_scan, test_ntm_scan

Arguments = dict[str, Any]
STEPS = ("location_addressing", "content_addressing", "memory_read", "erase_add")
STEPS += ("ntm_step", "lrua_step")
SIZES = {"batch": 2, "rows": 40, "width": 4, "reach": 1, "first": 1, "shared": 0}
WHOLE = (torch.int64, torch.int32, torch.uint8, torch.bool)
OTHERS = (*WHOLE, torch.float16, torch.bfloat16, torch.float64)
CSRC = Path(__file__).parents[3] / "csrc"


@pytest.fixture(autouse=True)
def _kernel() -> None:
    reason = availability("erase_add")["cpu"]
    if reason:
        pytest.skip(reason)


def with_heads(name: str, heads: int) -> Arguments:
    """A call of an op with so many heads, fp32."""
    if name == "lrua_scan":
        arguments = test_lrua_scan.make((2, 3, 4, heads, 40, 2))
    elif name == "ntm_scan":
        arguments = test_ntm_scan.make((2, 3, 4, heads - 1, 1, 40, 2))
    else:
        op, sizes = load(name), SIZES | {"heads": heads, "reads": heads, "writes": heads}
        case = op.sized(**{key: sizes[key] for key in op.sizes})
        arguments = case.make(torch.Generator().manual_seed(0))
    return {name: x.float() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def results(op: Callable[..., Any], arguments: Arguments, **options: Any) -> list[Tensor]:
    """Outputs, and gradients of everything that can have one."""
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    out = op(**(arguments | leaves), **options)
    out = (out,) if isinstance(out, Tensor) else out
    loss = sum((x.float() * 0.7).sin().sum() for x in out if x.requires_grad)
    grads = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    return [x.detach() for x in (*out, *grads) if x is not None]


def same(op: Callable[..., Any], arguments: Arguments, tolerance: float = 0.0) -> None:
    ours, eager = (results(op, arguments, backend=name) for name in ("auto", "eager"))
    assert [x.dtype for x in ours] == [x.dtype for x in eager]
    for x, y in zip(ours, eager, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*STEPS, "lrua_scan", "ntm_scan"])
def test_more_heads_than_a_kernel_takes(name):
    """The most is what the table says, one more is eager's; a backend that is named says so."""
    op, most = getattr(ops, name), _limits.CPU_HEADS
    op(**with_heads(name, most), backend="cpu")
    arguments = with_heads(name, most + 1)
    same(op, arguments)
    message = f"{name}: backend 'cpu' cannot run: it takes at most {most} heads, got {most + 1}"
    with pytest.raises(BackendUnavailableError, match=message):
        op(**arguments, backend="cpu")


def number(path: str, name: str) -> int:
    (value,) = re.findall(rf"constexpr int {name} = (\d+);", (CSRC / path).read_text())
    return int(value)


def test_the_numbers_are_those_of_the_kernels():
    assert number("cpu/memory/memory_problem.h", "kMaxHeads") == _limits.CPU_HEADS
    cuda = "cuda/memory/memory_tile.cuh"
    assert number(cuda, "kMaxHeads") == _limits.CUDA_HEADS
    assert number(cuda, "kMaxWidth") == _limits.CUDA_WIDTH
    assert number("cuda/video/patch_shift_window.cuh", "kMaxShifts") == _limits.CUDA_PLANES
    assert number("cuda/video/patch_shift_window.cuh", "kMaxChannels") == _limits.CUDA_PLANES
    assert number("cuda/video/masked_patch_loss.cuh", "kMaxChannels") == _limits.CUDA_PLANES
    assert 1 << number("cuda/video/random_masking.cuh", "kCountBits") == _limits.CUDA_TOKENS


WITHIN = {"B": 2, "N": 8, "M": 4, "H": 2, "W": 2, "R": 2, "C": 3, "S": 5, "K": 4, "Q": 4, "E": 16}
BEYOND = [
    *(("cuda", op, {"H": 17, "W": 17, "R": 17}) for op in (*STEPS, "lrua_scan", "ntm_scan")),
    *(("cuda", op, {"M": 257}) for op in STEPS[1:]),
    *(("cuda", op, {"N": 2**27}) for op in STEPS),
    *(("cuda", op, {"B": 2**26, "N": 32}) for op in (*STEPS, "lrua_scan")),
    *(("cuda", op, {"C": 33}) for op in ("patch_shift", "shifted_patch_embed")),
    *(("cuda", op, {"S": 33}) for op in ("patch_shift", "shifted_patch_embed")),
    *(("cuda", "masked_patch_loss", sizes) for sizes in ({"C": 33}, {"B": 2**20, "Q": 2**10})),
    ("cuda", "locality_attention", {"E": 129}),
    ("cuda", "allocation", {"N": 2**30}),
    ("cuda", "temporal_link", {"N": 2**30}),
    ("cuda", "random_masking", {"N": 2**21}),
    ("cuda", "gather_tokens", {"B": 2**16, "N": 2**15}),
    ("cuda", "lrua_scan", {"bf16": 1}),
    ("triton", "lrua_scan", {"bf16": 1}),
    ("triton", "lrua_scan", {"N": 256, "M": 40}),
    ("triton", "ntm_scan", {"H": 0}),
    ("triton", "erase_add", {"N": 2**21}),
]


@pytest.mark.parametrize(("backend", "op", "sizes"), BEYOND, ids=str)
def test_limits_of_other_devices(backend, op, sizes):
    """By the rules alone, as there is no such device here."""
    usual = WITHIN | {"bf16": 0}
    assert [rule(usual) for rule in LIMITS[backend][op] if rule(usual)] == []
    reasons = [rule(usual | sizes) for rule in LIMITS[backend][op]]
    assert any(re.search("got|fp32", reason) for reason in reasons)


def test_auto_takes_the_next_backend(monkeypatch):
    """Past one whose limit is exceeded; `explain` and calls within the limits do not change."""
    tensor = torch.zeros(1)
    assert resolve("memory_read", tensor, "auto", WITHIN) == "cpu"
    assert resolve("memory_read", tensor, "auto", WITHIN | {"H": 33}) == "eager"
    assert resolve("memory_read", tensor) == "cpu"
    assert set().union(*LIMITS.values()) <= set(registered_ops())


TOKENS = torch.tensor([[0, 3, 5], [6, 2, 1]])
RESTORE = torch.tensor([[2, 0, 6, 1, 3, 4, 5], [0, 4, 1, 5, 2, 3, 6]])


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("subject", ["gather pos", "restore pos", "mask_token", "weight", "bias"])
def test_numbers_of_another_dtype(subject, dtype):
    """Positions, mask tokens and weights of integers, or of a float that is not the tokens'."""
    other = (3 * some(7, 5)).to(dtype)
    if subject == "gather pos":
        return same(ops.gather_tokens, {"x": some(2, 7, 5), "ids_keep": TOKENS, "pos": other}, 1e-6)
    if subject == "restore pos":
        arguments = {"latent": some(2, 3, 5), "mask_token": some(5), "ids_restore": RESTORE}
        return same(ops.restore_tokens, {**arguments, "pos": other}, 1e-6)
    if subject == "mask_token":
        arguments = {"latent": some(2, 3, 5), "mask_token": other[0], "ids_restore": RESTORE}
        return same(ops.restore_tokens, arguments, 1e-6)
    arguments = {"video": some(2, 1, 2, 4, 4).sigmoid().requires_grad_(False)}
    arguments |= {"weight": some(3, 40), "bias": some(3), "tubelet": 2, "patch": 2}
    arguments[subject] = (3 * arguments[subject]).to(dtype)

    def embed(video: Tensor, **rest: Any) -> Tensor:
        return ops.shifted_patch_embed(video.detach(), **rest)

    half = dtype in (torch.float16, torch.bfloat16) and subject == "weight"
    return same(embed, arguments, 0.05 if half else 1e-5)


def test_integers_as_weights_are_those_numbers():
    """The pixels are not rounded to integers."""
    video, weight = some(2, 1, 2, 4, 4).sigmoid(), (3 * some(3, 40)).long()
    ours = ops.shifted_patch_embed(video, weight, tubelet=2, patch=2)
    same_numbers = ops.shifted_patch_embed(video, weight.float(), tubelet=2, patch=2)
    assert ours.dtype == torch.float32 and torch.equal(ours, same_numbers)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
def test_a_product_in_integers_is_an_error(dtype):
    with pytest.raises(ValueError, match="shifted_patch_embed: dtype must be fp32, bf16, fp16 or"):
        ops.shifted_patch_embed(some(1, 1, 2, 4, 4), some(3, 40), tubelet=2, patch=2, dtype=dtype)


TWICE = torch.tensor([[0, 3, 3], [1, 2, 1]])


@pytest.mark.parametrize("op", ["gather_tokens", "restore_tokens", "patch_shift", "embed"])
def test_ids_that_occur_twice(op):
    """Kernels turn ids around for the gradient, where only one place of each would count."""
    video = {"video": some(2, 1, 2, 4, 4).sigmoid(), "tubelet": 2, "patch": 2, "ids_keep": TWICE}
    if op == "embed":
        return same(ops.shifted_patch_embed, video | {"weight": some(3, 40), "pos": some(4, 3)})
    call: dict[str, Arguments] = {
        "gather_tokens": {"x": some(2, 7, 5), "ids_keep": TWICE, "pos": some(7, 5)},
        "restore_tokens": {
            "latent": some(2, 3, 5),
            "mask_token": some(5),
            "ids_restore": torch.tensor([[0, 1, 2, 0, 1, 2, 0], [6, 5, 4, 3, 3, 3, 0]]),
        },
        "patch_shift": video,
    }
    same(getattr(ops, op), call[op])
    with pytest.raises(BackendUnavailableError, match=f"{op}: backend 'cpu' .* one twice"):
        results(getattr(ops, op), call[op], backend="cpu")
    return None


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_ids_restore_of_another_masking_is_an_error(backend):
    x = some(2, 7, 5).requires_grad_()
    places = torch.tensor([[0, 3, 3, 1, 4, 2, 5], [3, 2, 1, 3, 3, 3, 0]])
    arguments = {"x": x, "ids_keep": TOKENS, "backend": backend}
    ops.gather_tokens(**arguments, ids_restore=places)
    with pytest.raises(ValueError, match="ids_restore must say where each token lies in ids_keep"):
        ops.gather_tokens(**arguments, ids_restore=places.flip(0))
