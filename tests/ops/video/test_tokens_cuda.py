"""CUDA C++ token ops without a GPU: compiled by nvcc, and run on the CPU by tests/cuda_host.

On a GPU: test_ops_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta.ops.video._patch_shift_args import scale_offset
from stmeta.ops.video.gather_tokens import invert_ids
from tests.ops._harness import Inputs, Results, check, load, make_inputs
from tests.ops._harness.cuda_host import HostProgram, as_tensor, storage
from tests.ops._harness.nvcc import Kernel, check_kernels, compile_kernels, compile_launchers

ADDRESS, THREAD = "address", "thread"
WIDE = {"float": 4, "__half": 8, "__nv_bfloat16": 8}  # numbers in 16 bytes, by dtype
EACH = [(n, dtype) for dtype, wide in WIDE.items() for n in (wide, 1)]
PLACE = [f"gather_tokens::place_kernel<{n}, {dtype}>" for n, dtype in EACH]
SUM = {
    ids: [f"gather_tokens::sum_kernel<{n}, {dtype}, {ids}>" for n, dtype in EACH]
    for ids in ("int", "long")
}
TWO = [f"<{video}, {dtype}>" for video in ("unsigned char", *WIDE) for dtype in WIDE]
LAUNCHED = {  # by op
    "random_masking": ["random_masking::masking_kernel<512>"],
    "gather_tokens": [*PLACE, *SUM["long"]],
    "restore_tokens": [*PLACE, *SUM["long"]],
    "masked_patch_loss": [
        "masked_patch_loss::finish_kernel<512>",
        *(f"masked_patch_loss::forward_kernel{two}" for two in TWO),
        *(f"masked_patch_loss::backward_kernel{two}" for two in TWO),
    ],
    "shifted_patch_embed": [
        *("shifted_patch_embed::add_kernel<256>", "patch_shift::slots_kernel<256>"),
        *(f"shifted_patch_embed::finish_kernel<{dtype}>" for dtype in WIDE),
        *(f"shifted_patch_embed::xhat_kernel{two}" for two in TWO),
        *(f"patch_shift::forward_kernel{two}" for two in TWO),
        *PLACE,
        *SUM["int"],
    ],
}
LISTED = {  # for compute capability 8.0, by the dtype of the tokens
    "float": (
        "gather_tokens::place_kernel<4, float>",
        "gather_tokens::place_kernel<1, float>",
        "gather_tokens::sum_kernel<4, float, long>",
        "gather_tokens::sum_kernel<1, float, long>",
        "masked_patch_loss::forward_kernel<float, float>",
        "masked_patch_loss::backward_kernel<float, float>",
        "masked_patch_loss::finish_kernel<512>",
        "random_masking::masking_kernel<512>",
        "shifted_patch_embed::xhat_kernel<float, float>",
        "shifted_patch_embed::finish_kernel<float>",
        "shifted_patch_embed::add_kernel<256>",
    ),
    "bfloat16": (
        "gather_tokens::place_kernel<8, __nv_bfloat16>",
        "gather_tokens::sum_kernel<8, __nv_bfloat16, long>",
        "gather_tokens::sum_kernel<8, __nv_bfloat16, int>",
        "masked_patch_loss::forward_kernel<unsigned char, __nv_bfloat16>",
        "masked_patch_loss::backward_kernel<unsigned char, __nv_bfloat16>",
        "shifted_patch_embed::xhat_kernel<unsigned char, __nv_bfloat16>",
        "shifted_patch_embed::finish_kernel<__nv_bfloat16>",
    ),
}
OPS = tuple(LAUNCHED)  # another op has a test_<op>_cuda.py of its own
SLOW = {  # cases of seconds, as each CUDA thread is one of the CPU's
    "random_masking": ("long", "longer", "many_ties", "usual"),
    "shifted_patch_embed": ("float", "far", "video_with_gradient", "weight_fp32"),
}
CALLS = [
    (name, case.name)
    for name in OPS
    for case in load(name).cases
    if case.name not in SLOW.get(name, ())
]

Program = Callable[[str, str], HostProgram]


@pytest.mark.parametrize("dtype", ["float", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_kernels_do_not_spill(dtype, tmp_path):
    """For compute capability 8.0; the launchers' are for 9.0."""
    kernels = compile_kernels(LISTED[dtype], OPS, tmp_path, 80)
    check_kernels(kernels, LISTED[dtype], registers=80)  # three blocks of 256 threads


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> list[Kernel]:
    """Kernels of all launchers."""
    return compile_launchers(OPS, tmp_path_factory.mktemp("launchers"), 90)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_launcher_compiles(launched, op):
    check_kernels(launched, LAUNCHED[op], registers=80)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """By op and sanitizer; all built at the same time.

    restore_tokens needs no ThreadSanitizer: its kernels are those of gather_tokens, and what only
    it sums up, shifted_patch_embed sums up too.
    """
    folder = tmp_path_factory.mktemp("cuda_host")
    keys = [(op, kind) for op in reversed(OPS) for kind in (ADDRESS, THREAD)]
    keys.remove(("restore_tokens", THREAD))
    with ThreadPoolExecutor() as pool:
        programs = pool.map(lambda key: HostProgram(key[0], key[1], folder), keys)
        built = dict(zip(keys, programs, strict=True))
    return lambda op, kind: built[op, kind]


@pytest.mark.parametrize(("name", "case"), CALLS)
def test_matches_reference(program, name, case):
    inputs = _inputs(name, case)
    check(inputs, _run(program(name, ADDRESS), inputs))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("random_masking", "ties"),
        ("gather_tokens", "odd"),
        ("gather_tokens", "same_dtype"),
        ("masked_patch_loss", "swapped"),
        ("masked_patch_loss", "whole_rows"),
        ("shifted_patch_embed", "no_bias"),
    ],
)
def test_has_no_races(program, name, case):
    inputs = _inputs(name, case, torch.bfloat16)
    check(inputs, _run(program(name, THREAD), inputs))


LARGE = [  # what small cases do not reach
    # Several slices of the batch; more vectors of a row than threads.
    ("gather_tokens", {"batch": 9, "tokens": 2, "width": 8, "keep": 1, "pos": 1, "restore": 1}),
    ("gather_tokens", {"batch": 1, "tokens": 2, "width": 2056, "keep": 1, "pos": 2, "restore": 1}),
    ("restore_tokens", {"batch": 9, "tokens": 3, "width": 8, "keep": 1, "pos": 1, "fp32": 3}),
    ("restore_tokens", {"batch": 1, "tokens": 3, "width": 2056, "keep": 1, "pos": 1, "fp32": 3}),
    # Several warps.
    ("random_masking", {"batch": 1, "frames": 6, "places": 50, "keep": 77, "mode": 0}),
    ("random_masking", {"batch": 1, "frames": 2, "places": 150, "keep": 20, "mode": 1}),
    # More features than threads take at a time.
    (
        "masked_patch_loss",
        {"batch": 1, "channels": 3, "grid": 1, "columns": 1, "tubelet": 2, "patch": 32}
        | {"masked": 1, "order": 0, "video": 0, "norm": 2},
    ),
    (
        "shifted_patch_embed",
        {"batch": 1, "channels": 5, "grid": 1, "columns": 1, "tubelet": 2, "patch": 32}
        | {"width": 3, "keep": 9, "parts": 7, "order": 0, "video": 0, "shifts": 0},
    ),
]


@pytest.mark.parametrize(("name", "sizes"), LARGE)
def test_large(program, name, sizes):
    op = load(name)
    for kind, dtype in ((ADDRESS, torch.float32), (THREAD, torch.bfloat16)):
        if kind == THREAD and ("patch" in sizes or name == "restore_tokens"):
            continue  # hundreds of threads take seconds there
        dtype = torch.float32 if name == "random_masking" else dtype
        inputs = make_inputs(op, op.sized(**sizes), dtype)
        check(inputs, _run(program(name, kind), inputs))


@pytest.mark.parametrize("wrong", [-1, 9, 1 << 40])
def test_a_wrong_id_reads_nothing(program, wrong):
    """Nobody looks at ids on a GPU."""
    inputs = _inputs("gather_tokens", "constant_pos")
    inputs.arguments["ids_keep"][0, 1] = wrong
    kept = _gather_tokens(program("gather_tokens", ADDRESS), inputs)["kept"]
    assert (kept[0, 1] == 0).all()
    assert (kept[0, 0] != 0).all()
    inputs = _inputs("masked_patch_loss", "float")
    inputs.arguments["ids"][0, 1] = wrong if wrong != 9 else 4
    pred = _masked_patch_loss(program("masked_patch_loss", ADDRESS), inputs)["grad pred"]
    assert (pred[0, 1] == 0).all()
    assert (pred[0, 0] != 0).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("name", ["gather_tokens", "restore_tokens", "masked_patch_loss"])
def test_layouts(program, name, layout):
    """Strides of the inputs and of the gradient; rows that must be dense are made so, as in .cu."""
    op = load(name)
    grad_layout = "sum" if layout == "expanded" else layout
    inputs = make_inputs(op, op.cases[0], layout=layout, grad_layout=grad_layout)
    check(inputs, _run(program(name, ADDRESS), inputs))


def _inputs(name: str, case: str, dtype: torch.dtype = torch.float32) -> Inputs:
    op = load(name)
    dtype = torch.float32 if name == "random_masking" else dtype
    return make_inputs(op, next(c for c in op.cases if c.name == case), dtype)


def _run(program: HostProgram, inputs: Inputs) -> Results:
    """Outputs and gradients, as the harness names them."""
    results = _RUN[inputs.op.name](program, inputs)
    wanted = {*inputs.op.outputs, *(f"grad {leaf}" for leaf in inputs.leaves)}
    return {name: x for name, x in results.items() if name in wanted}


def _results(raw: list[bytes], likes: dict[str, tuple[torch.dtype, Any]]) -> Results:
    """The results of a program by name, with their dtypes and shapes; empty ones are left out."""
    named = zip(likes.items(), raw, strict=True)
    return {
        name: as_tensor(data, dtype, shape)
        for (name, (dtype, shape)), data in named
        if data or 0 in shape
    }


def _strided(x: Tensor | None, dense: bool = True) -> tuple[Any, ...]:
    """Sizes, strides and storage; with dense rows."""
    if x is None:
        return None, None, None
    x = x if x.stride(-1) == 1 or not dense else x.contiguous()
    return x.shape, x.stride(), storage(x)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _needs(inputs: Inputs, *leaves: str) -> list[int]:
    return [int(leaf in inputs.leaves) for leaf in leaves]


def _grad(inputs: Inputs, like: Tensor) -> Tensor:
    """The gradient of the op's only output."""
    return next(iter(inputs.grads.values()), torch.zeros_like(like))


def _random_masking(program: HostProgram, inputs: Inputs) -> Results:
    a = inputs.arguments
    batch, tokens = a["noise"].shape[0], a["grid"][0] * a["grid"][1]
    kept = a["keep"] * tokens // a["noise"].shape[1]
    raw = program.run(a["noise"], [batch, a["keep"]], a["units"], a["grid"])
    shapes = [(batch, size) for size in (kept, tokens, tokens - kept, tokens)]
    dtypes = [torch.int64] * 3 + [torch.bool]
    return {
        name: as_tensor(data, dtype, shape)
        for name, data, dtype, shape in zip(inputs.op.outputs, raw, dtypes, shapes, strict=True)
    }


def _gather_tokens(program: HostProgram, inputs: Inputs) -> Results:
    a, x = inputs.arguments, inputs.arguments["x"]
    (batch, tokens, dim), (_, kept) = x.shape, a["ids_keep"].shape
    pos, restore = a.get("pos"), a.get("ids_restore")
    restore = invert_ids(a["ids_keep"], tokens) if restore is None else restore
    grad = _grad(inputs, x.new_empty(batch, kept, dim))
    single = pos is not None and "pos" in _fp32(inputs)
    raw = program.run(
        *(_dtype_name(inputs.dtype), *_strided(x), *_strided(pos), int(single)),
        *(a["ids_keep"], restore, kept, *_strided(grad), _needs(inputs, "x", "pos")),
    )
    results = _results(
        raw,
        {
            "kept": (inputs.dtype, (batch, kept, dim)),
            "grad x": (inputs.dtype, x.shape),
            "grad pos": (torch.float32, (tokens, dim)),
        },
    )
    return _as_parameters(inputs, results)


def _restore_tokens(program: HostProgram, inputs: Inputs) -> Results:
    a, latent = inputs.arguments, inputs.arguments["latent"]
    (batch, _, dim), (_, tokens) = latent.shape, a["ids_restore"].shape
    pos = a.get("pos")
    grad = _grad(inputs, latent.new_empty(batch, tokens, dim))
    raw = program.run(
        *(_dtype_name(inputs.dtype), *_strided(latent), a["mask_token"].float(), *_strided(pos)),
        *(int("pos" in _fp32(inputs)), a["ids_restore"], tokens, *_strided(grad)),
        _needs(inputs, "latent", "mask_token", "pos"),
    )
    results = _results(
        raw,
        {
            "tokens": (inputs.dtype, (batch, tokens, dim)),
            "grad mask_token": (torch.float32, (dim,)),
            "grad pos": (torch.float32, (tokens, dim)),
            "grad latent": (inputs.dtype, latent.shape),
        },
    )
    if grad.numel() == 0:  # the launcher returns zeros then
        results["grad mask_token"] = torch.zeros(dim)
    return _as_parameters(inputs, results)


def _fp32(inputs: Inputs) -> set[str]:
    """Floating arguments that are fp32 while the dtype under test is another."""
    a = inputs.arguments.items()
    return {name for name, x in a if isinstance(x, Tensor) and x.dtype != inputs.dtype}


def _as_parameters(inputs: Inputs, results: Results) -> Results:
    """Gradients in the dtypes of their tensors, as the formulas in Python give them."""
    for name in inputs.leaves:
        if f"grad {name}" in results:
            dtype = inputs.arguments[name].dtype
            results[f"grad {name}"] = results[f"grad {name}"].to(dtype)
    return results


def _patches(a: dict[str, Any]) -> tuple[Any, ...]:
    """patch, and the scale and the offset of the video."""
    reals = scale_offset(a["video"], a.get("mean"), a.get("std"))
    return [a["tubelet"], a["patch"]], reals


def _masked_patch_loss(program: HostProgram, inputs: Inputs) -> Results:
    a, video, pred = inputs.arguments, inputs.arguments["video"], inputs.arguments["pred"]
    patch, reals = _patches(a)
    grad = _grad(inputs, torch.zeros(()))
    raw = program.run(
        *(_dtype_name(inputs.dtype), int(video.dtype == torch.uint8)),
        *(*_strided(video, dense=False), *_strided(pred, dense=False)),
        *(a.get("ids"), a.get("mask"), patch, *reals, int(a.get("norm_pix", True)), 1e-6, grad),
    )
    return _results(raw, {"loss": (torch.float32, ()), "grad pred": (inputs.dtype, pred.shape)})


def _shifted_patch_embed(program: HostProgram, inputs: Inputs) -> Results:
    a, video, weight = inputs.arguments, inputs.arguments["video"], inputs.arguments["weight"]
    patch, reals = _patches(a)
    ids, (dim, features) = a.get("ids_keep"), weight.shape
    names = ("norm_weight", "norm_bias", "bias", "pos")
    gamma, beta, bias, pos = (None if a.get(x) is None else a[x].float() for x in names)
    out = inputs.op.reference(**a)
    grad = _grad(inputs, out)
    raw = program.run(
        *(_dtype_name(inputs.dtype), *_strided(video, dense=False), ids, out.shape[1]),
        *(gamma, beta, weight.to(inputs.dtype), dim, bias, pos, patch),
        [number for offset in a["shifts"] for number in offset],
        *(*reals, 1e-5, grad),
    )
    tokens = 0 if pos is None else pos.shape[0]
    results = _results(
        raw,
        {
            "tokens": (inputs.dtype, out.shape),
            "grad norm_weight": (torch.float32, (features,)),
            "grad norm_bias": (torch.float32, (features,)),
            "grad weight": (torch.float32, (dim, features)),
            "grad bias": (torch.float32, (dim,)),
            "grad pos": (torch.float32, (tokens, dim)),
        },
    )
    return _as_parameters(inputs, results)


_RUN = {
    "random_masking": _random_masking,
    "gather_tokens": _gather_tokens,
    "restore_tokens": _restore_tokens,
    "masked_patch_loss": _masked_patch_loss,
    "shifted_patch_embed": _shifted_patch_embed,
}
