"""Triton implementation of stmeta::ntm_scan. Reference: stmeta.ops.ntm_scan.

A program takes one sequence; see _common.py. Keys, strengths, erase and add vectors are read where
the op keeps them; only what `locate` wants side by side is copied.

Letters, besides those of _scan.py: A = R + W heads, of which the first R read and the last W write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..memory._common import (
    contiguous,
    floats,
    heads_of,
    load_heads,
    load_tile,
    store_heads,
    store_tile,
)
from ..memory.content_addressing import score, softmax
from ..memory.erase_add import write
from ..memory.location_addressing import locate
from ..memory.memory_read import read
from ._common import (
    dense,
    every_of,
    head_numbers,
    known_divisor,
    open_gates,
    sigmoid,
    softplus,
    steps_of,
    store_state,
    tanh,
)
from ._ntm_scan import constants_of, spread
from .ntm_scan_backward import ntm_scan_backward

__all__ = ["ntm_scan", "ntm_scan_backward"]


@triton.jit
def _shape(
    x, i, width,
    A: tl.constexpr, W: tl.constexpr, PER_HEAD: tl.constexpr,
    TANH_KEY: tl.constexpr, TANH_ADD: tl.constexpr,
):  # fmt: skip
    """Raw numbers i become keys, softplus of strength and sharpness, gates, erase, add vectors.

    Shifts stay as they are: they need the others of their head.
    """
    j = i % PER_HEAD - width
    k = i - A * PER_HEAD
    shaped = tl.where((j == 0) | (j == 1), softplus(x), x)
    shaped = tl.where(j == 2, sigmoid(x), shaped)
    if TANH_KEY:
        shaped = tl.where(j < 0, tanh(x), shaped)
    written = x
    if TANH_ADD:
        written = tanh(x)
    written = tl.where(k < W * width, sigmoid(x), written)
    return tl.where(k < 0, shaped, written)


# Reads P * H weights.
@triton.jit
def _command(
    interface_ptr, bias_ptr, h_ptr,  # in:  [P, H], [P], [H]
    heads_ptr, gates_ptr, sharpens_ptr, logits_ptr,  # out: [P], [A] x2, [A, S]
    hidden, width,
    A: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
    NUMBERS: tl.constexpr, TANH_KEY: tl.constexpr, TANH_ADD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the heads get from h, but for the softmax of their shifts."""
    for first in range(0, NUMBERS, BLOCK_C):
        i = first + tl.arange(0, BLOCK_C)
        live = i < NUMBERS
        x = head_numbers(interface_ptr, bias_ptr, h_ptr, i, live, hidden, BLOCK_C, BLOCK_K)
        x = _shape(x, i, width, A, W, PER_HEAD, TANH_KEY, TANH_ADD)
        tl.store(heads_ptr + i, x, mask=live)
        spread(x, i, live, gates_ptr, sharpens_ptr, logits_ptr, width, A, S, PER_HEAD)


@triton.jit
def _softmax_shifts(
    logits_ptr, shifts_ptr, heads_ptr,  # in:  [A, S]; out: [A, S], and into [P]
    width,
    A: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    shift = softmax(load_heads(logits_ptr, S, A, BLOCK_H, BLOCK_S), S, BLOCK_S)
    store_heads(shifts_ptr, shift, S, A, BLOCK_H, BLOCK_S)
    _, live = heads_of(S, A, BLOCK_H, BLOCK_S)
    a, s = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_S)[None, :]
    tl.store(heads_ptr + a * PER_HEAD + width + 3 + s, shift, mask=live)


# At each step: 4 * H * K + P * H weights from L2.
@triton.jit
def _ntm_scan_fwd_kernel(
    gates_ptr, recurrent_ptr, interface_ptr, bias_ptr,  # in
    memory_ptr, first_ptr, input_ptr, c_ptr, lengths_ptr,  # first weights; input: [B, H + R * M]
    scratch_ptr,  # see below
    y_ptr, memory_out_ptr, weights_out_ptr, c_out_ptr,  # out
    activated_ptr, cells_ptr, heads_ptr, step_weights_ptr, checkpoints_ptr,
    steps, hidden, recurrent_size, rows, width, every, eps,
    A: tl.constexpr, R: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
    NUMBERS: tl.constexpr, READ_FIRST: tl.constexpr, TANH_KEY: tl.constexpr,
    TANH_ADD: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, VECTOR_K: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    width = known_divisor(width, VECTOR)
    recurrent_size = known_divisor(recurrent_size, VECTOR_K)
    hidden = known_divisor(hidden, VECTOR_K)
    y_width = hidden + R * width
    weights_size, size = A * rows, rows * width  # of an element: less than 2^31
    # Regions of scratch, of constant sizes: scores, gated weights [A, N]; gates, sharpness [A];
    # shifts before and after their softmax [A, S].
    WEIGHTS: tl.constexpr = A * BLOCK_N
    scratch_size = 2 * WEIGHTS + 2 * A + 2 * A * S
    length = steps_of(lengths_ptr, batch, steps)
    tile = load_tile(memory_ptr + batch * size, 0, rows, width, width, 1, BLOCK_N, BLOCK_M)
    input, before = input_ptr + batch * y_width, c_ptr + batch * hidden
    previous = first_ptr + batch * weights_size
    for t in tl.range(length, disable_licm=True):
        zero = t // steps  # not known to the compiler: else it keeps addresses for all steps
        own = batch + zero
        at = own * steps + t
        checkpoint = own * tl.cdiv(steps + zero, every) + t // every
        scores = scratch_ptr + own * scratch_size
        gated, gates = scores + WEIGHTS, scores + 2 * WEIGHTS
        sharpens, logits = gates + A, gates + 2 * A
        shifts = logits + A * S
        if t % every == 0:
            store_tile(
                checkpoints_ptr + checkpoint * size, tile, zero, rows, width, BLOCK_N, BLOCK_M
            )  # fmt: skip
        h, cell, weight = (
            y_ptr + at * y_width,
            cells_ptr + at * hidden,
            step_weights_ptr + at * A * rows,
        )
        heads = heads_ptr + at * NUMBERS
        open_gates(
            gates_ptr + at * 4 * hidden, recurrent_ptr, input, before,
            activated_ptr + at * 4 * hidden, cell, h, hidden, recurrent_size, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        _command(
            interface_ptr, bias_ptr, h, heads, gates, sharpens, logits, hidden, width,
            A, W, S, PER_HEAD, NUMBERS, TANH_KEY, TANH_ADD, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        _softmax_shifts(logits, shifts, heads, width, A, S, PER_HEAD, BLOCK_H, BLOCK_S)
        for a in range(A):  # one head at a time: fewer registers
            head = heads + a * PER_HEAD
            score(
                tile, head, head + width, scores + a * rows, zero, rows, width, eps,
                1, BLOCK_N, BLOCK_M,
            )  # fmt: skip
        tl.debug_barrier()
        content = softmax(load_heads(scores, rows, A, BLOCK_H, BLOCK_N), rows, BLOCK_N)
        locate(
            content, previous, gates, shifts, sharpens, gated, weight, rows,
            A, S, BLOCK_H, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        erase = heads + A * PER_HEAD
        if READ_FIRST:
            read(tile, weight, h + hidden, zero, rows, width, R, BLOCK_N, BLOCK_M)
        tile = write(
            tile, weight + R * rows, erase, erase + W * width, zero, rows, width,
            W, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        if not READ_FIRST:
            read(tile, weight, h + hidden, zero, rows, width, R, BLOCK_N, BLOCK_M)
        tl.debug_barrier()
        input, before, previous = h, cell, weight
    none = batch * 0 + steps // (steps + 1)  # as `zero`
    own = batch + none
    store_tile(memory_out_ptr + own * size, tile, none, rows, width, BLOCK_N, BLOCK_M)
    store_state(
        previous, before, weights_out_ptr + own * weights_size, c_out_ptr + own * hidden,
        hidden, rows, A, BLOCK_H, BLOCK_N, BLOCK_C,
    )  # fmt: skip


def ntm_scan(
    gates: torch.Tensor,
    recurrent: torch.Tensor,
    interface: torch.Tensor,
    bias: torch.Tensor,
    memory: torch.Tensor,
    weights: torch.Tensor,
    reads: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    lengths: torch.Tensor | None,
    taps: int,
    read_first: bool,
    tanh_key: bool,
    tanh_add: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the forward: what a sequence gives, and what its backward needs."""
    (batch, steps, _), (_, rows, width) = gates.shape, memory.shape
    heads, hidden, read_size = weights.shape[1], c.shape[1], reads.shape[1]
    every = every_of(steps)
    options = (taps, read_first, tanh_key, tanh_add, eps)
    constants = constants_of(memory, recurrent, interface, weights, hidden, read_size, options)
    new = gates.new_empty if lengths is None else gates.new_zeros  # zeros behind a sequence's end
    out = (
        new(batch, steps, hidden + read_size),
        *(floats(x, *x.shape) for x in (memory, weights, c)),
        new(batch, steps, 4 * hidden),
        new(batch, steps, hidden),
        new(batch, steps, interface.shape[0]),
        new(batch, steps, heads, rows),
        new(batch, triton.cdiv(steps, every), rows, width),
    )
    if batch == 0:
        return out
    scratch = floats(memory, batch, 2 * heads * (constants["BLOCK_N"] + 1 + taps))
    with torch.cuda.device_of(memory):
        _ntm_scan_fwd_kernel[(batch,)](
            *contiguous(gates, recurrent, interface, bias, memory, weights),
            *(torch.cat([h, reads], 1), c.contiguous(), dense(lengths)),
            *(scratch, *out),
            *(steps, hidden, recurrent.shape[1], rows, width, every, eps),
            **constants,
            BLOCK_S=triton.next_power_of_2(taps),
        )
    return out
