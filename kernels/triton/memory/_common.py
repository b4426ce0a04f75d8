"""What the Triton memory ops share: pieces of their kernels, and how they cut their work.

A program takes a tile of memory rows, fp32 [BLOCK_N, BLOCK_M] in registers, zero outside of the
memory. Weights pass from one piece to the next through global memory: a program may take all heads
of a row, but all rows of a head are needed to address. Where an element of the batch fits one tile,
one launch does everything, with a barrier where a small memory's pieces meet; else there is one
launch for each stage (see `launch`), and sums over rows are left as partial ones for `finish`.

Pieces get pointers to what belongs to their element of the batch, or to the head.

Letters: B batch, N rows, M width of a row, H heads, S shift taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

WHOLE = tl.constexpr(0)  # all stages, of an element with one tile
FIRST = tl.constexpr(1)  # a tile, before the weights are known
ELEMENT = tl.constexpr(2)  # one head of one element, all rows
LAST = tl.constexpr(3)  # a tile, when they are known
USAGE = tl.constexpr(4)  # one element, before all others

TILE = 4096  # numbers of a tile, where an element has several
FORWARD = 16384  # numbers of an only tile
BACKWARD = 8192  # a backward holds its gradient as well
TILES = 0  # nothing is summed over rows: always several
PER_THREAD = 32  # numbers of a tile


# ---- between main memory and registers ----


@triton.jit
def tile_of(rows, BLOCK_N: tl.constexpr):
    """Element of the batch, and its first row, of this program."""
    tiles = tl.cdiv(rows, BLOCK_N)
    return tl.program_id(0).to(tl.int64) // tiles, (tl.program_id(0) % tiles) * BLOCK_N


@triton.jit
def divided(width, stride_b, stride_n, VECTOR: tl.constexpr):
    """The same numbers; the compiler then knows that VECTOR divides them, and loads vectors."""
    return width // VECTOR * VECTOR, stride_b // VECTOR * VECTOR, stride_n // VECTOR * VECTOR


@triton.jit
def load_tile(
    ptr, first, rows, width, stride_n, stride_m,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Rows [first, first + BLOCK_N) of a matrix [N, M] with strides."""
    n = first + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    place = n.to(tl.int64)[:, None] * stride_n + m.to(tl.int64)[None, :] * stride_m
    live = (n < rows)[:, None] & (m < width)[None, :]
    return tl.load(ptr + place, mask=live, other=0.0).to(tl.float32)


@triton.jit
def store_tile(ptr, tile, first, rows, width, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Write a tile into a contiguous [N, M]."""
    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    live = (n < rows - first)[:, None] & (m < width)[None, :]
    ptr += first.to(tl.int64) * width  # places within a tile fit 32 bits: fewer registers
    tl.store(ptr + n[:, None] * width + m[None, :], tile, mask=live)


@triton.jit
def load_vector(ptr, h, width, BLOCK_M: tl.constexpr):
    """Row h of [H, M]."""
    m = tl.arange(0, BLOCK_M)
    return tl.load(ptr + h * width + m, mask=m < width, other=0.0).to(tl.float32)


@triton.jit
def store_vector(ptr, x, h, width, BLOCK_M: tl.constexpr):
    m = tl.arange(0, BLOCK_M)
    tl.store(ptr + h * width + m, x, mask=m < width)


@triton.jit
def load_column(ptr, h, first, rows, BLOCK_N: tl.constexpr):
    """Weights of head h for the rows of a tile, from [H, N]."""
    n = first + tl.arange(0, BLOCK_N)
    return tl.load(ptr + h * rows + n, mask=n < rows, other=0.0).to(tl.float32)


@triton.jit
def store_column(ptr, x, h, first, rows, BLOCK_N: tl.constexpr):
    n = first + tl.arange(0, BLOCK_N)
    tl.store(ptr + h * rows + n, x, mask=n < rows)


@triton.jit
def load_number(ptr, h):
    return tl.load(ptr + h).to(tl.float32)


@triton.jit
def heads_of(rows, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr):
    """Places of all weights of HEADS heads in [H, N], and which exist; both [BLOCK_H, BLOCK_R]."""
    h = tl.arange(0, BLOCK_H)[:, None]
    n = tl.arange(0, BLOCK_R)[None, :]
    return h * rows + n, (h < HEADS) & (n < rows)


@triton.jit
def load_heads(
    ptr, rows, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    place, live = heads_of(rows, HEADS, BLOCK_H, BLOCK_R)
    return tl.load(ptr + place, mask=live, other=0.0).to(tl.float32)


@triton.jit
def store_heads(
    ptr, x, rows, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    place, live = heads_of(rows, HEADS, BLOCK_H, BLOCK_R)
    tl.store(ptr + place, x, mask=live)


# ---- pieces of several ops ----


@triton.jit
def sum_wide(a, b, AXIS: tl.constexpr):
    """Sum of products in doubles, for terms that cancel."""
    return tl.sum(a.to(tl.float64) * b.to(tl.float64), AXIS).to(tl.float32)


@triton.jit
def centred(weight, grad):
    """grad - its mean, weighted, over the rows of [heads, BLOCK_R]; the terms cancel: in doubles.

    Divided by the sum of the weights, which rounding has moved from one.
    """
    weight = weight.to(tl.float64)
    total = tl.sum(weight, 1)[:, None]
    mean = tl.sum(weight * grad, 1)[:, None] / tl.where(total == 0.0, 1.0, total)
    return (grad - mean).to(tl.float32)


@triton.jit
def outer(
    grad, weight_ptr, vector_ptr,  # in: [H, N], [H, M]
    first, rows, width,
    H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Tile `grad` plus the sum over heads of weight * vector."""
    for h in range(H):
        weight = load_column(weight_ptr, h, first, rows, BLOCK_N)
        grad += weight[:, None] * load_vector(vector_ptr, h, width, BLOCK_M)[None, :]
    return grad


@triton.jit
def key_grad(d, key, eps):
    """Gradient of a key from that of key / (|key| + eps)."""
    size = tl.sqrt_rn(tl.sum(key * key))
    scale = tl.div_rn(1.0, size + eps)
    along = tl.sum(d * key) * scale * scale / tl.where(size == 0.0, 1.0, size)
    return d * scale - tl.where(size == 0.0, 0.0, along) * key


# ---- how the ops cut their work ----


class Plan(NamedTuple):
    """How one call is cut."""

    whole: bool  # one launch, one program per element of the batch
    tiles: int  # of an element
    warps: int
    element_warps: int  # of a program of the stage ELEMENT
    blocks: dict[str, int]  # BLOCK_N and BLOCK_M of a tile, BLOCK_H heads, BLOCK_R all rows

    @property
    def parts(self) -> int:
        """Partial sums of an element."""
        return 1 if self.whole else self.tiles


def plan_of(heads: int, whole: int, memory: torch.Tensor, *others: torch.Tensor) -> Plan:
    """Cut a memory [B, N, M]; `others` are loaded in tiles as well, with strides.

    An only tile has at most `whole` numbers, weights included.
    """
    _, rows, width = memory.shape
    block_r, block_m, block_h = (
        triton.next_power_of_2(max(1, size)) for size in (rows, width, heads)
    )
    size = max(block_r * block_m, 4 * block_r * block_h)  # there are some four arrays of weights
    fits = size <= whole
    block_n = block_r if fits else min(block_r, max(1, TILE // block_m))
    return Plan(
        fits,
        triton.cdiv(rows, block_n),
        _warps(size if fits else block_n * block_m, PER_THREAD),
        whole_rows(rows)["num_warps"],
        {
            "BLOCK_N": block_n,
            "BLOCK_M": block_m,
            "BLOCK_H": block_h,
            "BLOCK_R": block_r,
            "VECTOR": math.gcd(8, width, *(s for x in (memory, *others) for s in x.stride()[:2])),
        },
    )


def whole_rows(rows: int) -> dict[str, int]:
    """How a program takes all weights of a head."""
    block = triton.next_power_of_2(max(1, rows))
    return {"BLOCK_R": block, "num_warps": _warps(block, 8)}


def _warps(numbers: int, per_thread: int) -> int:
    return min(16, max(1, numbers // (32 * per_thread)))


def launch(kernel, plan: Plan, stages, batch: int, heads: int, *arguments, **constants) -> None:
    """Launch all stages of an op: at once where the plan is whole, else one after the other."""
    for stage in (WHOLE,) if plan.whole else stages:
        blocks, programs, warps = plan.blocks, batch * plan.tiles, plan.warps
        if stage.value in (ELEMENT.value, USAGE.value):
            programs, warps = batch, plan.element_warps
        if stage.value == ELEMENT.value:
            programs, blocks = batch * heads, blocks | {"BLOCK_H": 1}
        kernel[(programs,)](
            *arguments, **constants, STAGE=stage.value, **blocks, num_warps=warps
        )  # fmt: skip


# Reads the parts once: tiles * COUNT * M numbers of an element.
@triton.jit
def _memory_finish_kernel(
    parts_ptr, numbers_ptr, key_ptr,  # in:  [B, tiles, C, M], [B, tiles, C], [B, C, M]; or None
    out_ptr, out_numbers_ptr,  # out: [B, C, M], [B, C]
    tiles, width, eps,
    COUNT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0).to(tl.int64)
    first = own // COUNT * tiles * COUNT + own % COUNT
    total = tl.zeros([BLOCK_M], tl.float32)
    for tile in range(tiles):
        total += load_vector(parts_ptr, first + tile * COUNT, width, BLOCK_M)
    if key_ptr is not None:
        total = key_grad(total, load_vector(key_ptr, own, width, BLOCK_M), eps)
    store_vector(out_ptr, total, own, width, BLOCK_M)
    if numbers_ptr is not None:
        number = 0.0
        for tile in range(tiles):
            number += load_number(numbers_ptr, first + tile * COUNT)
        tl.store(out_numbers_ptr + own, number)


def parts_of(plan: Plan, out: torch.Tensor) -> torch.Tensor:
    """Where tiles leave their parts of `out`, [B, C, ...]: `out` itself where there is one."""
    if plan.whole:
        return out
    return out.new_empty(out.shape[0], plan.tiles, *out.shape[1:], dtype=torch.float32)


def finish(plan: Plan, parts, out, numbers=None, out_numbers=None, key=None, eps=0.0) -> None:
    """Add the tiles' parts of `out` and `out_numbers` in order; with `key`, out is its gradient."""
    batch, count, width = out.shape
    if plan.whole or batch * count == 0:
        return
    _memory_finish_kernel[(batch * count,)](
        *(parts, numbers, key, out, out_numbers, plan.tiles, width, eps),
        COUNT=count,
        BLOCK_M=plan.blocks["BLOCK_M"],
        num_warps=_warps(plan.blocks["BLOCK_M"], 4),
    )


def floats(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Scratch, fp32."""
    return like.new_empty(shape, dtype=torch.float32)


def contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.contiguous() for x in tensors]
