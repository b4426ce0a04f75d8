"""lrua_scan in CUDA C++ without a GPU: compiled by nvcc, and run on the CPU by tests/cuda_host.

On a GPU: the last test, which compares Triton as well.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta.ops import availability, lrua_scan
from stmeta.ops._core.register import by_schema_names
from stmeta.ops.memory.content_addressing import EPS
from stmeta.ops.scan._lrua_scan import _SCHEMA, _autograd, _backward_fake, _fake
from tests.ops._harness.cuda_host import SCAN_WAYS, HostProgram, HostProgramError, as_tensor
from tests.ops._harness.nvcc import check_kernels, compile_launchers
from tests.ops.scan.test_lrua_scan import OPTIONS, make

ADDRESS, THREAD = "address,undefined", "thread"
KERNELS = (
    *(
        "lrua_scan::forward_kernel<true>",
        "lrua_scan::forward_kernel<false>",
        "scan::pack_kernel",
    ),
    *("lrua_scan::backward_kernel<true>", "lrua_scan::backward_kernel<false>"),
)
SIZES = {  # B, T, H, R, N, M
    "small": (2, 5, 6, 2, 6, 5),
    "one": (1, 1, 1, 1, 1, 1),
    "step": (3, 1, 9, 3, 3, 7),
    "wide": (1, 3, 8, 2, 4, 140),  # more columns than a warp holds at a time
    "many_heads": (2, 2, 10, 6, 9, 4),  # more heads than a thread holds
    "several_warps": (1, 3, 20, 4, 20, 12),
    "no_heads": (2, 3, 5, 0, 4, 3),
}
NAMES = ("y", "memory", "usage", "weight", "c")
Program = Callable[[str], HostProgram]


@pytest.mark.slow
def test_launcher_compiles(tmp_path):
    kernels = compile_launchers(["lrua_scan"], tmp_path, 80, 90)
    check_kernels(kernels, KERNELS, registers=128)  # 512 threads share 65,536


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """By sanitizer; both built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    kinds = (ADDRESS, THREAD)
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda kind: HostProgram("lrua_scan", kind, folder), kinds)
        by_kind: dict[str, HostProgram] = dict(zip(kinds, built, strict=True))
    return by_kind.__getitem__


@pytest.mark.parametrize("way", SCAN_WAYS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_reference(program, options, way):
    compare(host(program(ADDRESS), **SCAN_WAYS[way]), SIZES["small"], options)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(program, sizes):
    compare(host(program(ADDRESS)), sizes)


@pytest.mark.parametrize("way", SCAN_WAYS)
def test_lengths(program, way):
    sizes = (5, 7, 4, 2, 5, 3)
    compare(host(program(ADDRESS), **SCAN_WAYS[way]), sizes, lengths=[0, 7, 3, 1, 6])


def test_a_step_of_a_second_cluster(program):
    compare(host(program(ADDRESS), cluster=8), (9, 2, 5, 1, 4, 3), lengths=[2] * 8 + [1])


@pytest.mark.parametrize(
    ("name", "way"),
    [("usual", "shared_memory"), ("usual", "clusters_of_4"), ("read_last", "clusters_of_8")],
)
def test_has_no_races(program, name, way):
    sizes = (2, 3, 9, 2, 11, 5)
    compare(host(program(THREAD), **SCAN_WAYS[way]), sizes, OPTIONS[name], lengths=[3, 2])


def test_paper_has_no_races(program):
    compare(host(program(THREAD)), (2, 2, 5, 3, 4, 6), OPTIONS["paper"])


def test_several_warps_have_no_races(program):
    compare(host(program(THREAD), cluster=4), (1, 2, 20, 4, 20, 12))


@pytest.mark.slow
def test_usual_size(program):
    """Sixteen warps."""
    compare(host(program(ADDRESS)), (1, 3, 200, 4, 128, 40))


def test_a_nan_stays_in_its_episode(program):
    """The blocks of a cluster multiply the vectors of all of its episodes."""
    tensors, options = arguments((3, 4, 6, 2, 5, 3))
    function = host(program(ADDRESS), cluster=4)
    clean = results(function, tensors, options, torch.float32)
    tensors["gates"][1, 2] = torch.nan
    hurt = results(function, tensors, options, torch.float32)
    for name in (*NAMES, "grad gates", "grad memory"):
        assert torch.equal(hurt[name][::2], clean[name][::2]), name
    assert hurt["y"][1, 2:].isnan().any()


PLANS = {  # R, N, M: blocks of a cluster and whether the rows are in shared memory, both kernels
    (4, 128, 40): [8, 1, 8, 1],
    (4, 512, 64): [8, 1, 4, 1],
    (4, 512, 128): [8, 0, 8, 0],
}


@pytest.mark.parametrize("sizes", PLANS, ids=str)
def test_plans(program, sizes):
    """With a controller of 200 units, in the 227 KB of a block on compute capability 9.0."""
    heads, rows, width = sizes
    shape = [16, 50, 200, heads, rows, width, 200 + heads * width]
    flags = [1, 0, 1, 0, 1, 8]
    (raw,) = program(ADDRESS).run(2, shape, flags, None, None, None, 0.99, EPS)
    assert as_tensor(raw, torch.long, (4,)).tolist() == PLANS[sizes]


def test_empty_batch(program):
    assert host(program(ADDRESS))(*arguments((0, 3, 4, 2, 4, 3)))[0].shape == (0, 3, 10)


def test_too_many_heads(program):
    """The error names what to use instead."""
    with pytest.raises(HostProgramError, match=r"lrua_scan: .* got 17 heads .* 'eager'"):
        host(program(ADDRESS))(*arguments((1, 1, 2, 17, 20, 2)))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [None, [50, 0, 7, 49] * 4], ids=["full", "lengths"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_on_a_gpu(backend, name, lengths):
    function = on_gpu(backend)
    compare_public(function, (16, 50, 200, 4, 128, 40), OPTIONS[name], lengths, "cuda")


GPU_SIZES = {
    **SIZES,
    "second_cluster": (9, 7, 20, 2, 16, 12),
    "clusters_of_4": (5, 6, 200, 4, 512, 64),
    "main_memory": (3, 5, 60, 3, 700, 128),
}


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", GPU_SIZES.values(), ids=GPU_SIZES)
def test_sizes_on_a_gpu(sizes):
    compare_public(on_gpu("cuda"), sizes, None, None, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_same_bits_twice_on_a_gpu(backend):
    function = on_gpu(backend)
    tensors, options = arguments((16, 50, 200, 4, 128, 40))
    tensors = {name: x.cuda() for name, x in tensors.items()}
    once, again = (results(function, tensors, options, torch.float32) for _ in range(2))
    assert all(torch.equal(x, again[name]) for name, x in once.items())


def on_gpu(backend: str):
    """`lrua_scan` of a backend; skips with the reason."""
    reason = availability("lrua_scan")[backend]
    if reason:
        pytest.skip(reason)

    def function(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
        return lrua_scan(**leaves, backend=backend, **options)

    return function


# ---- the op, run by the host executor ----


def arguments(sizes, options=None, lengths=None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments in float64, and options, of `lrua_scan`."""
    options = options or {}
    made = {k: v for k, v in options.items() if k in ("fed", "write_key")}
    tensors = make(sizes, **made, extra=bool(options) and options is not OPTIONS["paper"])
    if lengths is not None:
        tensors["lengths"] = torch.tensor(lengths)
    return tensors, {k: v for k, v in options.items() if k != "fed"}


def compare(function, sizes, options=None, *, lengths=None) -> None:
    compare_public(function, sizes, options, lengths, "cpu")


def compare_public(function, sizes, options, lengths, device: str, factor: float = 8.0) -> None:
    """Within `factor` errors of eager in fp32; a chain of steps multiplies errors, so not two.

    Eager's error in a few numbers is small by luck at times.
    """
    tensors, passed = arguments(sizes, options, lengths)
    tensors = {name: x.to(device) for name, x in tensors.items()}

    def eager(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
        return lrua_scan(**leaves, backend="eager", **options)

    exact = results(eager, tensors, passed, torch.float64)
    plain = results(eager, tensors, passed, torch.float32)
    fused = results(function, tensors, passed, torch.float32)
    for name, truth in exact.items():
        ours = fused[name]
        assert ours.shape == truth.shape and ours.dtype == torch.float32, name
        if truth.numel() == 0:
            continue
        scale = float(truth.abs().max())
        error, allowed = (float((x.double() - truth).abs().max()) for x in (ours, plain[name]))
        assert error <= factor * (allowed + 6e-8 * scale), f"{name}: {error} against {allowed}"


def results(function, tensors, options, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, and gradients of all inputs but usage."""
    leaves = {
        name: x.to(dtype).requires_grad_(name != "usage") if x.is_floating_point() else x
        for name, x in tensors.items()
    }
    out = dict(zip(NAMES, function(leaves, options), strict=True))
    g = torch.Generator().manual_seed(1)
    loss = torch.stack(
        [
            (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)).sum()
            for name, x in out.items()
            if name != "usage"
        ]
    ).sum()
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    named = dict(zip((f"grad {name}" for name in wanted), grads, strict=True))
    return {name: x.detach() for name, x in (out | named).items()}


def host(program: HostProgram, whole: bool = True, cluster: int = 1):
    """`lrua_scan` with a derivative: the program's kernels between the op's own formulas.

    `whole`: the memory may lie in shared memory. `cluster`: the most blocks of one.
    """

    def call(mode: int, like, steps, recurrent, interface, memory, previous, c, lengths, options,
             *items: Tensor | None) -> tuple[Tensor, ...]:  # fmt: skip
        decay, *flags, eps = options
        (batch, heads, rows), hidden = previous.shape, c.shape[1]
        sizes = [batch, steps, hidden, heads, rows, memory.shape[2], recurrent.shape[1]]
        flags = [*(int(flag) for flag in flags), int(whole), cluster]
        first = (mode, sizes, flags, recurrent, interface, lengths, float(decay), float(eps))
        raw = program.run(*first, *items)
        return tuple(as_tensor(r, x.dtype, x.shape) for r, x in zip(raw, like, strict=True))

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        gates, key, add, recurrent, interface, bias, memory, usage, previous, *rest = inputs[:13]
        reads, h, c, lengths = rest
        items = (gates, key, add, bias, memory, usage, previous, reads, h, c)
        return call(0, _fake(*inputs), gates.shape[1], recurrent, interface, memory, previous, c,
                    lengths, inputs[13:], *items)  # fmt: skip

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *grads, add, recurrent, interface, memory, previous, c, lengths = inputs[:11]
        activated, cells, heads, weights, rows, checkpoints = inputs[11:17]
        items = (*grads, add, previous, c, activated, cells, heads, weights, checkpoints, rows)
        return call(1, _backward_fake(*inputs), activated.shape[1], recurrent, interface, memory,
                    previous, c, lengths, inputs[17:], *items)  # fmt: skip

    setup, formula = _autograd(SimpleNamespace(lrua_scan_backward=backward))
    setup = by_schema_names(_SCHEMA, setup)

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = forward(*(x.detach() if isinstance(x, Tensor) else x for x in inputs))
            setup(ctx, inputs, output)
            return output

        backward = staticmethod(formula)

    def function(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
        order = ("gates", "key", "add", "recurrent", "interface", "bias", "memory", "usage")
        order += ("previous", "reads", "h", "c", "lengths")
        usual = {"decay": 0.99, "read_first": True, "shared": False, "strength": True}
        usual |= {"write_key": False, "eps": EPS} | options
        return Scan.apply(*(leaves.get(name) for name in order), *usual.values())[:5]

    return function
