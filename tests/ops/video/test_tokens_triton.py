"""Triton's token ops without a GPU: interpreted against the reference, compiled for real targets.

On a GPU: test_ops_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from tests.ops._harness.triton_aot import Kernel, compile_launches, run_interpreted

DIAGONAL = [0, 0, 0, 0, -8, -8, 0, -8, 8, 0, 8, -8, 0, 8, 8]
ROWS = [(32, 512, 96, 51), (8, 1568, 512, 157)]  # B, N, D, K
DTYPES = [torch.float32, torch.bfloat16]

targets = pytest.mark.parametrize("target", [80, 90, 100])


def test_interpreter():
    run_interpreted("tokens")


@targets
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", ROWS)
def test_gather_tokens(sizes, dtype, target):
    names = compiled(lambda: gather(*sizes, dtype), target)
    assert names == of("gather_tokens", "bwd", "bwd", "fwd")


@targets
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", ROWS)
def test_restore_tokens(sizes, dtype, target):
    names = compiled(lambda: restore(*sizes, dtype), target)
    assert names == ["_column_sum_kernel", *of("restore_tokens", "bwd", "fwd")]


@targets
@pytest.mark.parametrize("video", [torch.uint8, torch.float32])
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("masked", [461, None])
def test_masked_patch_loss(masked, patch, video, target):
    names = compiled(lambda: loss(32, 8 * patch, patch, masked, video), target)
    assert names == of("masked_patch_loss", "bwd", "fwd_blocks", "fwd_finish", "fwd")


@targets
@pytest.mark.parametrize(("batch", "units", "grid", "keep"), [
    (32, [8, 64], [8, 64], 51), (8, [1, 196], [8, 196], 19), (8, [8, 1], [8, 196], 1),
])  # fmt: skip
def test_random_masking(batch, units, grid, keep, target):
    names = compiled(lambda: masking(batch, units, grid, keep), target)
    assert names == of("random_masking", "fwd_rank", "fwd_scatter")


@pytest.mark.parametrize("target", [90])
def test_random_masking_of_many_units_sorts(target):
    names = compiled(lambda: masking(2, [16, 625], [16, 625], 1000), target)
    assert names == of("random_masking", "fwd_scatter")


@targets
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("patch", "width"), [(8, 192), (16, 768)])
def test_shifted_patch_embed(patch, width, norm, target):
    names = compiled(lambda: embed(32, 8 * patch, patch, width, 51, norm), target)
    own = ["fwd_epilogue", *["bwd_normalised", "bwd_parameters"] * norm]
    tokens = of("patch_shift", "fwd") * (1 if norm else 2)
    assert names == sorted([*of("shifted_patch_embed", *own), *of("gather_tokens", "bwd"), *tokens])


def test_compiles_where_sizes_are_one():
    """Triton makes a constant of each integer that is one, on which methods of tensors fail."""
    compiled(lambda: gather(1, 1, 1, 1, torch.float32), 90)
    compiled(lambda: restore(1, 1, 1, 1, torch.float32), 90)
    compiled(lambda: loss(1, 2, 2, None, torch.uint8, frames=2), 90)
    compiled(lambda: masking(1, [1, 1], [1, 1], 1), 90)
    compiled(lambda: embed(1, 2, 2, 1, 1, True, frames=2), 90)


@pytest.mark.parametrize("width", [1, 2, 3, 96, 5000])
def test_no_more_threads_than_numbers(width):
    """Or copies of a thread read what another one wrote, as the epilogue works in place."""
    tile = launcher("gather_tokens").row_tile(width)
    assert 1 <= tile["num_warps"] <= tile["BLOCK_ROWS"] * tile["BLOCK_D"] / 32


def compiled(launch: Callable[[], object], target: int) -> list[str]:
    """Names of the kernels that it launches, of which none spills."""
    kernels: list[Kernel] = compile_launches(launch, target)
    assert [kernel for kernel in kernels if kernel.stack] == []
    return sorted(kernel.name for kernel in kernels)


def of(op: str, *passes: str) -> list[str]:
    """Names of an op's kernels, sorted."""
    return [f"_{op}_{name}_kernel" for name in passes]


def launcher(op: str):
    return import_module(f"stmeta.kernels.triton.video.{op}")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ids(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int64)


def clip(batch: int, frames: int, size: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """[B, C, T, H, W] that lies in memory as [B, T, H, W, C]."""
    return meta(batch, frames, size, size, 3, dtype=dtype).permute(0, 4, 1, 2, 3)


def gather(batch: int, tokens: int, width: int, keep: int, dtype: torch.dtype) -> None:
    module = launcher("gather_tokens")
    x, pos = meta(batch, tokens, width, dtype=dtype), meta(tokens, width)
    kept = module.gather_tokens(x, pos, ids(batch, keep), None)
    for needs in ([True, True], [True, False]):
        module.gather_tokens_backward(kept, ids(batch, keep), ids(batch, tokens), needs)


def restore(batch: int, tokens: int, width: int, keep: int, dtype: torch.dtype) -> None:
    module = launcher("restore_tokens")
    latent = meta(batch, keep, width, dtype=dtype)
    places = ids(batch, tokens)
    full = module.restore_tokens(latent, meta(width), meta(tokens, width), places)
    module.restore_tokens_backward(full, places, keep, [True, True, True])


def loss(
    batch: int, size: int, patch: int, masked: int | None, dtype: torch.dtype, frames: int = 16
) -> None:
    """With a mask of all tokens if `masked` is None."""
    module = launcher("masked_patch_loss")
    tokens = frames // 2 * (size // patch) ** 2
    pred = meta(batch, masked or tokens, 2 * patch**2 * 3, dtype=torch.bfloat16)
    chosen = (ids(batch, masked), None) if masked else (None, meta(batch, tokens, dtype=torch.bool))
    start, numbers = (pred, clip(batch, frames, size, dtype), *chosen), [[2, patch], [0.02] * 3]
    numbers.append([-2.1] * 3)
    value, *saved = module.masked_patch_loss(*start, *numbers, True, 1e-6)
    module.masked_patch_loss_backward(value, *start, *saved, *numbers)


def masking(batch: int, units: list[int], grid: list[int], keep: int) -> None:
    noise = meta(batch, units[0] * units[1])
    launcher("random_masking").random_masking(noise, keep, units, grid)


def embed(
    batch: int, size: int, patch: int, width: int, keep: int, norm: bool, frames: int = 16
) -> None:
    module = launcher("shifted_patch_embed")
    tokens = frames // 2 * (size // patch) ** 2
    features = 2 * patch**2 * 3 * 5
    start = [clip(batch, frames, size), ids(batch, keep)]
    start += [meta(features) if norm else None] * 2
    start.append(meta(width, features, dtype=torch.bfloat16))
    numbers = ([2, patch], DIAGONAL, [0.02] * 3, [-2.1] * 3)
    out, mean, rstd = module.shifted_patch_embed(
        *start, meta(width), meta(tokens, width), *numbers, 1e-5, torch.bfloat16
    )
    needs = [norm, norm, True, True, True]
    module.shifted_patch_embed_backward(out, *start, mean, rstd, *numbers, tokens, needs)
