"""ntm_scan in CUDA C++ without a GPU: compiled by nvcc, and run on the CPU by tests/cuda_host.

On a GPU: the last two tests.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta.ops import availability, ntm_scan
from stmeta.ops._core.register import by_schema_names
from stmeta.ops.memory.content_addressing import EPS
from stmeta.ops.scan.ntm_scan import _SCHEMA, _autograd, _backward_fake, _fake
from tests.ops._harness.cuda_host import SCAN_WAYS, HostProgram, HostProgramError, as_tensor
from tests.ops._harness.nvcc import check_kernels, compile_launchers
from tests.ops.scan.test_ntm_scan import OPTIONS, make

ADDRESS, THREAD = "address,undefined", "thread"
KERNELS = (
    *("ntm_scan::forward_kernel<true>", "ntm_scan::forward_kernel<false>", "scan::pack_kernel"),
    *("ntm_scan::backward_kernel<true>", "ntm_scan::backward_kernel<false>"),
)
SMALL = (1, 5, 6, 2, 1, 6, 5)  # B, T, H, R, W, N, M
SIZES = {
    "one": (1, 1, 1, 1, 1, 3, 1),
    "step": (3, 1, 8, 1, 3, 4, 7),
    "wide": (1, 2, 8, 1, 1, 4, 140),  # more columns than a warp holds at a time
    "several_warps": (1, 1, 12, 2, 1, 14, 6),
    "many_heads": (1, 2, 8, 6, 5, 9, 4),  # more of both kinds than a thread holds
}
ORDER = ("gates", "recurrent", "interface", "bias", "memory", "weights", "reads", "h", "c")
NAMES = ("y", "memory", "weights", "c")
Program = Callable[[str], HostProgram]
Function = Callable[[dict[str, Tensor], dict[str, Any]], tuple[Tensor, ...]]


@pytest.mark.slow
def test_launcher_compiles(tmp_path):
    kernels = compile_launchers(["ntm_scan"], tmp_path, 80, 90)
    check_kernels(kernels, KERNELS, registers=128)  # 512 threads share 65,536


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """By sanitizer; both built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    kinds = (ADDRESS, THREAD)
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda kind: HostProgram("ntm_scan", kind, folder), kinds)
        by_kind: dict[str, HostProgram] = dict(zip(kinds, built, strict=True))
    return by_kind.__getitem__


@pytest.mark.parametrize(("name", "way"), list(zip(OPTIONS, cycle(SCAN_WAYS), strict=False)))
def test_matches_reference(program, name, way):
    compare(host(program(ADDRESS), **SCAN_WAYS[way]), SMALL, OPTIONS[name])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(program, sizes):
    compare(host(program(ADDRESS)), sizes)


@pytest.mark.parametrize("way", SCAN_WAYS)
def test_lengths(program, way):
    compare(
        host(program(ADDRESS), **SCAN_WAYS[way]), (5, 5, 4, 1, 2, 5, 3), lengths=[0, 5, 3, 4, 1]
    )


def test_the_same_bits_twice(program):
    function = host(program(ADDRESS))
    tensors = arguments((1, 3, 6, 2, 1, 6, 5))
    once, again = (results(function, tensors, {}, torch.float32) for _ in range(2))
    assert all(torch.equal(x, again[name]) for name, x in once.items())


@pytest.mark.parametrize("way", ["main_memory", "clusters_of_4"])
def test_has_no_races(program, way):
    """One warp: the executor's threads of a warp are on their own, so barriers count all the same.

    Steps of two segments, and one past the end.
    """
    options = {"read_first": False, "taps": 5}
    compare(host(program(THREAD), **SCAN_WAYS[way]), (1, 4, 5, 1, 2, 7, 5), options, lengths=[3])


@pytest.mark.slow
def test_usual_size(program):
    """Sixteen warps."""
    compare(host(program(ADDRESS)), (1, 3, 100, 1, 1, 128, 40))


def test_empty_batch(program):
    out = host(program(ADDRESS))(arguments((0, 3, 4, 2, 1, 4, 3)), {})
    assert [x.shape for x in out] == [(0, 3, 10), (0, 4, 3), (0, 3, 4), (0, 4)]


def test_too_many_heads(program):
    with pytest.raises(HostProgramError, match=r"ntm_scan: .* got 17 heads .* 'eager'"):
        host(program(ADDRESS))(arguments((1, 1, 2, 16, 1, 20, 2)), {})


def test_state_beyond_shared_memory(program):
    """The heads' numbers alone are more than a block has: 2 * (2 + 3 + 15001) + 4 of them."""
    options = {"taps": 15001}
    rule = r"ntm_scan: .* fit 228352 bytes of shared memory.* got \d{6} bytes of 1 hidden units and"
    with pytest.raises(HostProgramError, match=rule + r" 30016 numbers .*fewer.*'eager'"):
        host(program(ADDRESS))(arguments((1, 1, 1, 1, 1, 15001, 2), options), options)


@pytest.fixture
def kernels() -> None:
    """The compiled kernels, on a GPU."""
    reason = availability("ntm_scan")["cuda"]
    if reason:
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("lengths", [None, [50, 0, 7, 49] * 4], ids=["full", "lengths"])
@pytest.mark.parametrize("name", OPTIONS)
def test_on_a_gpu(name, lengths):
    compare(on_gpu, (16, 50, 100, 2, 1, 128, 20), OPTIONS[name], lengths=lengths, device="cuda")


GPU_SIZES = {
    **SIZES,
    "second_cluster": (9, 7, 20, 2, 1, 16, 12),
    "large": (5, 6, 200, 3, 1, 512, 64),
    "main_memory": (3, 5, 60, 2, 1, 700, 128),
}


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sizes", GPU_SIZES.values(), ids=GPU_SIZES)
def test_sizes_on_a_gpu(sizes):
    compare(on_gpu, sizes, device="cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
def test_the_same_bits_twice_on_a_gpu():
    tensors = {name: x.cuda() for name, x in arguments((16, 50, 100, 2, 1, 128, 20)).items()}
    once, again = (results(on_gpu, tensors, {}, torch.float32) for _ in range(2))
    assert all(torch.equal(x, again[name]) for name, x in once.items())


# ---- how they compare ----


def on_gpu(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
    return ntm_scan(**leaves, backend="cuda", **options)


def eager(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
    return ntm_scan(**leaves, backend="eager", **options)


def arguments(sizes, options=None, lengths=None) -> dict[str, Tensor]:
    """Arguments of `ntm_scan` in float64."""
    made = {k: v for k, v in (options or {}).items() if k in ("fed", "taps")}
    tensors = make(sizes, **made)
    return tensors if lengths is None else tensors | {"lengths": torch.tensor(lengths)}


def compare(
    function: Function, sizes, options=None, *, lengths=None, device="cpu", factor=6.0
) -> None:
    """Within `factor` errors of eager in fp32, the worst of three.

    Sharp heads multiply the error of a step in the next ones, by luck more or less: so eager also
    runs on inputs that differ by a rounding.
    """
    tensors = {name: x.to(device) for name, x in arguments(sizes, options, lengths).items()}
    passed = {k: v for k, v in (options or {}).items() if k != "fed"}
    exact = results(eager, tensors, passed, torch.float64)
    fused = results(function, tensors, passed, torch.float32)
    plain = [results(eager, tensors, passed, torch.float32)]
    g = torch.Generator().manual_seed(2)
    for _ in range(2):
        near = {
            name: x + 6e-8 * x * torch.randn(x.shape, generator=g).to(x)
            if x.is_floating_point()
            else x
            for name, x in tensors.items()
        }
        plain.append(results(eager, near, passed, torch.float32))
    for name, truth in exact.items():
        ours = fused[name]
        assert ours.shape == truth.shape and ours.dtype == torch.float32, name
        error, *others = (
            float((x.double() - truth).abs().max()) for x in (ours, *(one[name] for one in plain))
        )
        allowed = factor * (max(others) + 6e-8 * float(truth.abs().max()))
        assert error <= allowed, f"{name}: {error}, {allowed} is allowed"


def results(function: Function, tensors, options, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, and gradients of all inputs."""
    leaves = {
        name: x.to(dtype).requires_grad_() if x.is_floating_point() else x
        for name, x in tensors.items()
    }
    out = dict(zip(NAMES, function(leaves, options), strict=True))
    g = torch.Generator().manual_seed(1)
    loss = torch.stack(
        [
            (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)).sum()
            for x in out.values()
        ]
    ).sum()
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    named = dict(zip((f"gradient of {name}" for name in wanted), grads, strict=True))
    return {name: x.detach() for name, x in (out | named).items()}


# ---- the op, run by the host executor ----


def host(program: HostProgram, whole: bool = True, cluster: int = 1) -> Function:
    """`ntm_scan` with a derivative: the program's kernels between the op's own formulas.

    `whole`: the memory may lie in shared memory.
    """

    def call(mode: int, like, sizes, matrices, lengths, options, *items: Tensor):
        taps, *flags, eps = options
        flags = [*(int(flag) for flag in flags), int(whole), cluster]
        first = (mode, [*sizes, taps], flags, *matrices, lengths, float(eps))
        raw = program.run(*first, *items)
        return tuple(as_tensor(r, x.dtype, x.shape) for r, x in zip(raw, like, strict=True))

    def sizes_of(recurrent: Tensor, weights: Tensor, read: int, memory, steps: int, hidden: int):
        (batch, heads, rows), width = weights.shape, memory.shape[-1]
        return batch, steps, hidden, heads, read // width, rows, width, recurrent.shape[1]

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        gates, recurrent, interface, bias, memory, weights, reads, h, c, lengths = inputs[:10]
        sizes = sizes_of(recurrent, weights, reads.shape[1], memory, gates.shape[1], h.shape[1])
        items = (gates, bias, memory, weights, reads, h, c)
        return call(0, _fake(*inputs), sizes, (recurrent, interface), lengths, inputs[10:], *items)

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *grads, recurrent, interface, weights, c, lengths = inputs[:9]
        kept, options = inputs[9:14], inputs[14:]
        hidden = c.shape[1]
        read = grads[0].shape[2] - hidden
        sizes = sizes_of(recurrent, weights, read, kept[-1], grads[0].shape[1], hidden)
        items = (*grads, weights, c, *kept)
        return call(
            1, _backward_fake(*inputs), sizes, (recurrent, interface), lengths, options, *items
        )

    setup, formula = _autograd(SimpleNamespace(ntm_scan_backward=backward))
    setup = by_schema_names(_SCHEMA, setup)

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = forward(*(x.detach() if isinstance(x, Tensor) else x for x in inputs))
            setup(ctx, inputs, output)
            return output

        backward = staticmethod(formula)

    def function(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
        usual = {"taps": 3, "read_first": True, "tanh_key": False, "tanh_add": False, "eps": EPS}
        usual |= options
        tensors = (leaves[name] for name in ORDER)
        return Scan.apply(*tensors, leaves.get("lengths"), *usual.values())[:4]

    return function
