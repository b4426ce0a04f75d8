"""Triton's memory ops without a GPU: interpreted against the reference, compiled for real targets.

On a GPU: test_ops_gpu.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from tests.ops._harness.triton_aot import compile_launches, run_interpreted

SIZES = [(16, 128, 40, 4), (64, 1024, 64, 4)]  # B, N, M, H: one launch, and one for each stage

# bf16 once: it differs in loads and stores only.
targets = pytest.mark.parametrize(
    ("target", "dtype"),
    [(80, torch.float32), (90, torch.float32), (90, torch.bfloat16), (100, torch.float32)],
)
shapes = pytest.mark.parametrize("sizes", SIZES, ids=["whole", "tiles"])
orders = pytest.mark.parametrize("read_first", [True, False], ids=["read_first", "read_last"])


def test_interpreter():
    run_interpreted("memory")


@targets
@shapes
def test_content_addressing(sizes, target, dtype):
    forward, backward, finish = launches(lambda: content(*sizes, dtype), target)
    assert (forward, backward, finish) == ((1, 1, 0) if sizes == SIZES[0] else (2, 2, 1))


@targets
@shapes
def test_location_addressing(sizes, target, dtype):
    assert launches(lambda: location(*sizes, dtype), target) == (1, 1, 0)


@targets
@shapes
def test_memory_read(sizes, target, dtype):
    assert launches(lambda: read(*sizes, dtype), target) == (1, 1, int(sizes != SIZES[0]))


@targets
@shapes
def test_erase_add(sizes, target, dtype):
    assert launches(lambda: write(*sizes, dtype), target) == (1, 1, 2 * (sizes != SIZES[0]))


@targets
@shapes
@orders
def test_ntm_step(sizes, read_first, target, dtype):
    found = launches(lambda: ntm(*sizes, dtype, read_first), target)
    assert found == ((1, 1, 0) if sizes == SIZES[0] else (3, 3, 4))


@targets
@shapes
@orders
def test_lrua_step(sizes, read_first, target, dtype):
    found = launches(lambda: lrua(*sizes, dtype, read_first), target)
    assert found == ((1, 1, 0) if sizes == SIZES[0] else (4, 3, 3))


@targets
@shapes
def test_allocation(sizes, target, dtype):
    assert launches(lambda: allocate(*sizes, dtype), target) == (1, 1, 0)


@pytest.mark.parametrize("rows", [2048, 3000])
def test_allocation_of_many_rows(rows):
    """The most that a program sorts, and more."""
    assert launches(lambda: allocate(1, rows, 1, 1, torch.float32), 80) == (1, 1, 0)


@targets
@shapes
def test_temporal_link(sizes, target, dtype):
    assert launches(lambda: link(*sizes, dtype), target) == (1, 1, 1)


def test_compiles_where_sizes_are_one():
    """Triton makes a constant of each integer that is one, on which methods of tensors fail."""
    one = (1, 1, 1, 1, torch.float32)
    for call in (content, location, read, write, allocate, link):
        launches(lambda call=call: call(*one), 90)
    launches(lambda: ntm(*one, True), 90)
    launches(lambda: lrua(*one, True), 90)


def launches(launch: Callable[[], object], target: int) -> tuple[int, int, int]:
    """Launches of the forward, the backward and the sum of parts, none of which spills."""
    kernels = compile_launches(launch, target)
    assert [kernel for kernel in kernels if kernel.stack] == []
    ends = ("_fwd_kernel", "_bwd_kernel", "_finish_kernel")
    count = Counter(end for kernel in kernels for end in ends if kernel.name.endswith(end))
    assert sum(count.values()) == len(kernels)
    return tuple(count[end] for end in ends)


def launcher(op: str):
    return import_module(f"stmeta.kernels.triton.memory.{op}")


class Tensors:
    """What the ops take, of B, N, M, H on no device."""

    def __init__(self, batch: int, rows: int, width: int, heads: int, dtype: torch.dtype):
        def meta(*shape: int) -> torch.Tensor:
            return torch.empty(batch, *shape, dtype=dtype, device="meta")

        self.memory = meta(rows, width)
        self.weight = meta(heads, rows)
        self.vector = meta(heads, width)  # keys, erase and add vectors, and what is read
        self.number = meta(heads)
        self.shift = meta(heads, min(3, rows))
        self.usage = meta(rows)
        self.rows = torch.empty(batch, heads, dtype=torch.int64, device="meta")


def content(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("content_addressing"), Tensors(batch, rows, width, heads, dtype)
    inputs = (t.memory, t.vector, t.number)
    weight = module.content_addressing(*inputs, 1e-8)
    module.content_addressing_backward(weight, *inputs, weight, 1e-8)


def location(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("location_addressing"), Tensors(batch, rows, width, heads, dtype)
    inputs = (t.weight, t.weight, t.number, t.shift, t.number)
    module.location_addressing(*inputs)
    module.location_addressing_backward(t.weight, *inputs, t.weight)


def read(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("memory_read"), Tensors(batch, rows, width, heads, dtype)
    module.memory_read(t.memory, t.weight)
    module.memory_read_backward(t.vector, t.memory, t.weight)


def write(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("erase_add"), Tensors(batch, rows, width, heads, dtype)
    inputs = (t.memory, t.weight, t.vector, t.vector)
    module.erase_add(*inputs)
    module.erase_add_backward(t.memory, *inputs)


def ntm(
    batch: int, rows: int, width: int, heads: int, dtype: torch.dtype, read_first: bool
) -> None:
    module, t = launcher("ntm_step"), Tensors(batch, rows, width, heads, dtype)
    numbers = (t.number, t.number, t.shift, t.number)
    inputs = (t.memory, t.weight, t.vector, *numbers, t.vector, t.vector)
    module.ntm_step(*inputs, heads, read_first, 1e-8)
    grads = (t.memory, t.weight, t.vector)
    module.ntm_step_backward(*grads, *inputs, t.weight, t.weight, heads, read_first, 1e-8)


def lrua(
    batch: int, rows: int, width: int, heads: int, dtype: torch.dtype, read_first: bool
) -> None:
    module, t = launcher("lrua_step"), Tensors(batch, rows, width, heads, dtype)
    inputs = (t.memory, t.weight, t.vector, t.number, t.number, t.vector)
    module.lrua_step(t.memory, t.usage, *inputs[1:], 0.99, read_first, False, 1e-8)
    grads = (t.memory, t.weight, t.vector)
    module.lrua_step_backward(*grads, *inputs, t.weight, t.rows, read_first, False, 1e-8)


def allocate(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("allocation"), Tensors(batch, rows, width, heads, dtype)
    _, order = module.allocation(t.usage)
    module.allocation_backward(t.usage, t.usage, order)


def link(batch: int, rows: int, width: int, heads: int, dtype: torch.dtype) -> None:
    module, t = launcher("temporal_link"), Tensors(batch, rows, width, heads, dtype)
    links = t.weight[..., None].expand(-1, -1, -1, rows)
    module.temporal_link(links, t.weight, t.weight)
    module.temporal_link_backward(links.contiguous(), t.weight, links, t.weight, t.weight)
