"""What Triton's lrua_scan and ntm_scan share: their LSTM, and how they start and end.

A program takes one sequence and keeps its memory in registers, from the first step to the last.
What else a step leaves for the next passes through what the op gives and keeps anyway (outputs of
the controller, cells, weights), in global memory with a barrier; so do a step's numbers.

Letters, besides those of memory/_common.py: T steps, R heads that read, K = H + R * M or H (H:
hidden here), P numbers of all heads.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..memory._common import (
    BACKWARD,
    load_column,
    load_heads,
    load_tile,
    plan_of,
    store_column,
    store_heads,
    store_tile,
)

UNITS = 16  # of a block of weights
INNER = 64  # numbers that each of them multiplies at a time
CHUNK = 16  # rows of the memory and of its gradient in a backward's registers at a time
UNROLLED = tl.constexpr(512)  # numbers of all heads: with more, an unrolled loop's loads spill


@triton.jit
def known_divisor(n, VECTOR: tl.constexpr):
    """The same number; the compiler then knows that VECTOR divides it, and loads vectors."""
    return n // VECTOR * VECTOR


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0.0, -1.0, 1.0) * tl.div_rn(1.0 - e, 1.0 + e)


@triton.jit
def sigmoid(x):
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def steps_of(lengths_ptr, batch, steps):
    """The steps of a sequence, whatever `lengths` says."""
    length = steps
    if lengths_ptr is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths_ptr + batch), 0), steps).to(tl.int32)
    return length


@triton.jit
def before_step(first_ptr, all_ptr, batch, steps, t, size):
    """What there was before step t: of [B, size] at step 0, else of the step before it."""
    place = all_ptr + (batch * steps + t - 1) * size
    if t == 0:
        place = first_ptr + batch * size
    return place


@triton.jit
def copy_memory(
    from_ptr, to_ptr, none, rows, width,  # [N, M] x2; zero, unknown to the compiler
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    for chunk in tl.range(CHUNKS, disable_licm=True):
        first = none + chunk * CHUNK
        memory = load_tile(from_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
        store_tile(to_ptr, memory, first, rows, width, CHUNK, BLOCK_M)


# ---- forward ----


# Reads 4 * H * K weights.
@triton.jit
def open_gates(
    gates_ptr, recurrent_ptr, input_ptr, before_ptr,  # in:  [4H], [4H, K], [K], [H]
    activated_ptr, cell_ptr, h_ptr,  # out: [4H], [H], [H]
    hidden, recurrent_size,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The LSTM, BLOCK_C units at a time."""
    turn = hidden * recurrent_size
    for first in range(0, hidden, BLOCK_C):
        n = first + tl.arange(0, BLOCK_C)
        live = n < hidden
        i = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
        f, g, o = i, i, i
        for start in range(0, recurrent_size, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(input_ptr + k, mask=k < recurrent_size, other=0.0)[None, :]
            place = recurrent_ptr + n[:, None] * recurrent_size + k[None, :]
            both = live[:, None] & (k < recurrent_size)[None, :]
            i += tl.load(place, mask=both, other=0.0) * x
            f += tl.load(place + turn, mask=both, other=0.0) * x
            g += tl.load(place + 2 * turn, mask=both, other=0.0) * x
            o += tl.load(place + 3 * turn, mask=both, other=0.0) * x
        i = sigmoid(tl.load(gates_ptr + n, mask=live, other=0.0) + tl.sum(i, 1))
        f = sigmoid(tl.load(gates_ptr + hidden + n, mask=live, other=0.0) + tl.sum(f, 1))
        g = tanh(tl.load(gates_ptr + 2 * hidden + n, mask=live, other=0.0) + tl.sum(g, 1))
        o = sigmoid(tl.load(gates_ptr + 3 * hidden + n, mask=live, other=0.0) + tl.sum(o, 1))
        cell = f * tl.load(before_ptr + n, mask=live, other=0.0) + i * g
        tl.store(activated_ptr + n, i, mask=live)
        tl.store(activated_ptr + hidden + n, f, mask=live)
        tl.store(activated_ptr + 2 * hidden + n, g, mask=live)
        tl.store(activated_ptr + 3 * hidden + n, o, mask=live)
        tl.store(cell_ptr + n, cell, mask=live)
        tl.store(h_ptr + n, o * tanh(cell), mask=live)


@triton.jit
def head_numbers(
    interface_ptr, bias_ptr, h_ptr, i, live, hidden,  # in:  [P, H], [P], [H]; numbers i
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Raw numbers i of the heads: bias + interface h."""
    sums = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(h_ptr + k, mask=k < hidden, other=0.0)[None, :]
        place = interface_ptr + i[:, None] * hidden + k[None, :]
        sums += tl.load(place, mask=live[:, None] & (k < hidden)[None, :], other=0.0) * x
    return tl.load(bias_ptr + i, mask=live, other=0.0) + tl.sum(sums, 1)


@triton.jit
def store_state(
    weight_ptr, cell_ptr,  # in:  [A, N], [H]
    weight_out_ptr, cell_out_ptr,  # out: the same
    hidden, rows,
    A: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weights and cell behind the last step, or their gradients before the first."""
    weight = load_heads(weight_ptr, rows, A, BLOCK_H, BLOCK_N)
    store_heads(weight_out_ptr, weight, rows, A, BLOCK_H, BLOCK_N)
    for first in range(0, hidden, BLOCK_C):
        cell = load_column(cell_ptr, 0, first, hidden, BLOCK_C)
        store_column(cell_out_ptr, cell, 0, first, hidden, BLOCK_C)


# ---- backward ----


@triton.jit
def product(
    x_ptr, matrix_ptr, count, n, wide,  # in: [count], [count, wide]; columns n
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum of x[i] * matrix[i, n]."""
    sums = tl.zeros([BLOCK_I, BLOCK_K], tl.float32)
    for first in range(0, count, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        x = tl.load(x_ptr + i, mask=i < count, other=0.0)[:, None]
        place = matrix_ptr + i[:, None] * wide + n[None, :]
        live = (i < count)[:, None] & (n < wide)[None, :]
        sums += tl.load(place, mask=live, other=0.0) * x
    return tl.sum(sums, 0)


@triton.jit
def grad_of_read(
    grad_ptr, d_input_ptr, out_ptr, vectors, FED_READS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradient of what a step read: from its output, and from the controller a step later."""
    for first in range(0, vectors, BLOCK):
        x = load_column(grad_ptr, 0, first, vectors, BLOCK)
        if FED_READS:
            x += load_column(d_input_ptr, 0, first, vectors, BLOCK)
        store_column(out_ptr, x, 0, first, vectors, BLOCK)


# Reads P * H weights.
@triton.jit
def _close_gates(
    grad_ptr, d_input_ptr, d_heads_ptr, interface_ptr,  # in:  [H] x2, [P], [P, H]
    activated_ptr, cell_ptr, before_ptr, d_cell_ptr,  # in:  [4H], [H] x3
    d_gates_ptr, d_before_ptr,  # out: [4H], [H]
    hidden, numbers,
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The LSTM, a step back."""
    for first in range(0, hidden, BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        live = n < hidden
        d = product(d_heads_ptr, interface_ptr, numbers, n, hidden, BLOCK_I, BLOCK_K)
        d += tl.load(grad_ptr + n, mask=live, other=0.0)
        d += tl.load(d_input_ptr + n, mask=live, other=0.0)
        i = tl.load(activated_ptr + n, mask=live, other=0.0)
        f = tl.load(activated_ptr + hidden + n, mask=live, other=0.0)
        g = tl.load(activated_ptr + 2 * hidden + n, mask=live, other=0.0)
        o = tl.load(activated_ptr + 3 * hidden + n, mask=live, other=0.0)
        tanh_cell = tanh(tl.load(cell_ptr + n, mask=live, other=0.0))
        d_cell = tl.load(d_cell_ptr + n, mask=live, other=0.0) + d * o * (
            1.0 - tanh_cell * tanh_cell
        )
        before = tl.load(before_ptr + n, mask=live, other=0.0)
        tl.store(d_gates_ptr + n, d_cell * g * i * (1.0 - i), mask=live)
        tl.store(d_gates_ptr + hidden + n, d_cell * before * f * (1.0 - f), mask=live)
        tl.store(d_gates_ptr + 2 * hidden + n, d_cell * i * (1.0 - g * g), mask=live)
        tl.store(d_gates_ptr + 3 * hidden + n, d * tanh_cell * o * (1.0 - o), mask=live)
        tl.store(d_before_ptr + n, d_cell * f, mask=live)


# Reads 4 * H * K + P * H weights.
@triton.jit
def controller_back(
    grad_ptr, d_heads_ptr, interface_ptr, recurrent_ptr,  # in:  [H], [P], [P, H], [4H, K]
    activated_ptr, cell_ptr, before_ptr, d_cell_ptr,  # in:  [4H], [H] x3
    d_input_ptr,  # in and out: [H + R * M], of which the last do not change where K = H
    d_gates_ptr, d_before_ptr,  # out: [4H], [H]
    hidden, recurrent_size, zero,  # zero: not known to the compiler
    NUMBERS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The controller, a step back: gradients of its gates, its cell and what it took in."""
    numbers = NUMBERS
    if NUMBERS > UNROLLED:
        numbers = NUMBERS + zero
    tl.debug_barrier()
    _close_gates(
        grad_ptr, d_input_ptr, d_heads_ptr, interface_ptr, activated_ptr, cell_ptr, before_ptr,
        d_cell_ptr, d_gates_ptr, d_before_ptr, hidden, numbers, BLOCK_I, BLOCK_K,
    )  # fmt: skip
    tl.debug_barrier()
    for first in range(0, recurrent_size, BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        back = product(d_gates_ptr, recurrent_ptr, 4 * hidden, n, recurrent_size, BLOCK_I, BLOCK_K)
        tl.store(d_input_ptr + n, back, mask=n < recurrent_size)
    tl.debug_barrier()


@triton.jit
def store_input_grad(
    d_input_ptr, d_h_ptr, d_reads_ptr, hidden, vectors, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradients of what the first step's controller took in, [H + R * M], as [H] and [R * M]."""
    for first in range(0, hidden, BLOCK):
        of_h = load_column(d_input_ptr, 0, first, hidden, BLOCK)
        store_column(d_h_ptr, of_h, 0, first, hidden, BLOCK)
    for first in range(0, vectors, BLOCK):
        of_reads = load_column(d_input_ptr + hidden, 0, first, vectors, BLOCK)
        store_column(d_reads_ptr, of_reads, 0, first, vectors, BLOCK)


# ---- launch ----


def every_of(steps: int) -> int:
    """Steps between two checkpoints."""
    return max(1, math.isqrt(max(0, steps - 1)) + 1)


def blocks_of(
    op: str, heads: int, memory: torch.Tensor, hidden: int, recurrent: torch.Tensor,
    interface: torch.Tensor,
) -> dict[str, int]:  # fmt: skip
    """Blocks and warps of both kernels; a ValueError where a program cannot keep the memory."""
    plan = plan_of(heads, BACKWARD, memory)
    most = max(recurrent.numel(), interface.numel())
    if not plan.whole or most >= 2**31 or heads == 0:
        raise ValueError(
            f"{op}: the triton backend keeps the memory in registers: N * M, each rounded "
            f"up to a power of two, must be at most {BACKWARD}, N times the heads at most a "
            "quarter of it, with 1 head or more and fewer than 2^31 weights; got "
            f"{heads} heads, [N, M] = {list(memory.shape[1:])} and {most} weights; use 'cuda' or "
            "'eager'"
        )
    recurrent_size = recurrent.shape[1]
    return {
        **{name: plan.blocks[name] for name in ("BLOCK_N", "BLOCK_M", "BLOCK_H")},
        "BLOCK_C": UNITS,
        "BLOCK_K": min(INNER, max(16, triton.next_power_of_2(recurrent_size))),
        "VECTOR": math.gcd(8, memory.shape[2]),
        "VECTOR_K": math.gcd(8, recurrent_size, hidden),
        "num_warps": 8,  # of the largest memory; the weights keep them busy with any
    }


def dense(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None else x.contiguous()
