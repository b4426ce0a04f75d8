"""CUDA C++ token ops without a GPU: compiled by nvcc, and run on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch

from stmeta.ops._patch_shift_args import scale_offset
from stmeta.ops.gather_tokens import invert_ids
from stmeta.ops.masked_patch_loss import EPS
from tests.ops._cuda_host import HostProgram, as_tensor, storage
from tests.ops._harness import TOKEN_OPS, check, load, make_inputs
from tests.ops._nvcc import CSRC, TORCH_FLAGS, compile_cuda

RUNS = {}  # by op: from a program and inputs to results
EXACT = ("address,undefined",)


def runs(function):
    """Register `_<op>`."""
    RUNS[function.__name__[1:]] = function
    return function


@runs
def _gather_tokens(program, inputs):
    x, pos, ids = (inputs.arguments.get(name) for name in ("x", "pos", "ids_keep"))
    restore = inputs.arguments.get("ids_restore")
    restore = invert_ids(ids, x.shape[1]) if restore is None else restore
    sizes = (*x.shape, ids.shape[1])
    grads = program.run(
        _types(x, pos),
        *(sizes, *_strided(x), *_table(pos), ids, restore, *_strided(inputs.grads["kept"])),
        [int(name in inputs.leaves) for name in ("x", "pos")],
    )
    return _results(inputs, {"kept": (sizes[0], sizes[3], sizes[2])}, ["x", "pos"], x, grads)


@runs
def _restore_tokens(program, inputs):
    names = ("latent", "mask_token", "pos", "ids_restore")
    latent, mask_token, pos, restore = (inputs.arguments.get(name) for name in names)
    sizes = (latent.shape[0], restore.shape[1], latent.shape[2], latent.shape[1])
    grad = inputs.grads.get("tokens", latent.new_zeros(sizes[:3]))
    grads = program.run(
        _types(latent, pos),
        *(sizes, *_strided(latent), mask_token.float(), *_table(pos), restore, *_strided(grad)),
        [int(name in inputs.leaves) for name in names[:3]],
    )
    return _results(inputs, {"tokens": sizes[:3]}, names[:3], latent, grads)


@runs
def _masked_patch_loss(program, inputs):
    arguments = inputs.arguments
    video, pred, mask = (arguments.get(name) for name in ("video", "pred", "mask"))
    scale, offset = scale_offset(video, arguments.get("mean"), arguments.get("std"))
    loss, grad = program.run(
        f"{str(video.dtype)[6:]} {str(pred.dtype)[6:]}",
        *(video.shape, *_strided(video), pred.shape, *_strided(pred)),
        *(arguments.get("ids"), mask, [arguments["tubelet"], arguments["patch"]]),
        *(scale, offset, int(arguments.get("norm_pix", True)), int(mask is not None), EPS),
        inputs.grads.get("loss", torch.zeros(())),
    )
    results = {"loss": as_tensor(loss, torch.float32, ())}
    return results | {"grad pred": as_tensor(grad, pred.dtype, pred.shape)}


@runs
def _random_masking(program, inputs):
    noise, keep, units, grid = inputs.arguments.values()
    batch, tokens = noise.shape[0], grid[0] * grid[1]
    kept = keep * tokens // noise.shape[1]
    raw = program.run(noise, batch, keep, units, grid)
    sizes = (kept, tokens, tokens - kept, tokens)
    return {
        name: as_tensor(r, torch.bool if name == "mask" else torch.int64, (batch, size))
        for name, r, size in zip(inputs.op.outputs, raw, sizes, strict=True)
    }


def _types(x, pos) -> str:
    return f"{str(x.dtype)[6:]} {'float32' if pos is None else str(pos.dtype)[6:]}"


def _strided(x):
    return x.stride(), storage(x)


def _table(pos):
    return ([0, 0, 0], None) if pos is None else ([0, *pos.stride()], storage(pos))


def _results(inputs, outputs, names, x, raw):
    """Outputs in x's dtype, then gradients: the first one in x's dtype, fp32 the others."""
    results = {
        name: as_tensor(r, x.dtype, shape)
        for (name, shape), r in zip(outputs.items(), raw, strict=False)
    }
    for name, r in zip(names, raw[len(outputs) :], strict=True):
        if name in inputs.leaves:
            like = inputs.arguments[name]
            grad = as_tensor(r, x.dtype if name == names[0] else torch.float32, like.shape)
            results[f"grad {name}"] = grad.to(like.dtype)
    return results


def cases(*ops):
    """Pairs of op and case."""
    return [pytest.param(op, case, id=f"{op}-{case.name}") for op in ops for case in load(op).cases]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """From an op and a sanitizer to a program; all are built at the same time."""
    folder = tmp_path_factory.mktemp("cuda_host")
    pool = ThreadPoolExecutor(2)
    kinds = [(op, kind) for op in RUNS for kind in ("address,undefined", "thread")]
    built = {pair: pool.submit(HostProgram, *pair, folder) for pair in kinds}
    yield lambda op, kind="address,undefined": built[op, kind].result()
    pool.shutdown()


@pytest.mark.parametrize(("op", "case"), cases(*RUNS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_reference(program, op, case, dtype):
    if dtype not in load(op).dtypes:
        pytest.skip("the op has no such dtype")
    inputs = make_inputs(load(op), case, dtype)
    check(inputs, RUNS[op](program(op), inputs))
