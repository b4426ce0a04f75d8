"""Triton implementation of stmeta::lrua_scan. Reference: stmeta.ops.lrua_scan.

A program takes one episode; see _common.py. Letters: as there, but P numbers of one head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..memory._common import (
    contiguous,
    floats,
    load_column,
    load_heads,
    load_tile,
    store_column,
    store_heads,
    store_tile,
)
from ..memory.content_addressing import score, softmax
from ..memory.lrua_step import find_least, store_usage, write_rows
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
)
from ._lrua_scan import constants_of, spread
from .lrua_scan_backward import lrua_scan_backward

__all__ = ["lrua_scan", "lrua_scan_backward"]


@triton.jit
def _shape(
    x, i, live, key_ptr, add_ptr, width,
    STRENGTH: tl.constexpr, WRITE_KEY: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Raw numbers i of heads [R, P] become keys, vectors to write, strengths, gates."""
    r, j = i // PER_HEAD, i % PER_HEAD
    if key_ptr is not None:
        x += tl.load(key_ptr + r * width + j, mask=live & (j < width), other=0.0)
    if add_ptr is not None and not WRITE_KEY:
        of_add = live & (j >= width) & (j < 2 * width)
        x += tl.load(add_ptr + r * width + j - width, mask=of_add, other=0.0)
    strength = x * 0.0 + 1.0
    if STRENGTH:
        strength = 1.0 + 10.0 * softplus(x)
    x = tl.where(j == PER_HEAD - 2, strength, x)
    return tl.where(j == PER_HEAD - 1, sigmoid(x), x)


# Reads R * P * H weights.
@triton.jit
def _command(
    interface_ptr, bias_ptr, h_ptr, key_ptr, add_ptr,  # in:  [R * P, H], [R * P], [H], extras
    heads_ptr, keys_ptr, adds_ptr, strengths_ptr, gates_ptr,  # out: [R * P]; see `spread`
    hidden, width,
    R: tl.constexpr, PER_HEAD: tl.constexpr, STRENGTH: tl.constexpr, WRITE_KEY: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the heads get from h."""
    for first in range(0, R * PER_HEAD, BLOCK_C):
        i = first + tl.arange(0, BLOCK_C)
        live = i < R * PER_HEAD
        x = head_numbers(interface_ptr, bias_ptr, h_ptr, i, live, hidden, BLOCK_C, BLOCK_K)
        x = _shape(x, i, live, key_ptr, add_ptr, width, STRENGTH, WRITE_KEY, PER_HEAD)
        tl.store(heads_ptr + i, x, mask=live)
        spread(
            x, i, live, add_ptr, keys_ptr, adds_ptr, strengths_ptr, gates_ptr, width,
            WRITE_KEY, PER_HEAD,
        )  # fmt: skip


@triton.jit
def _rest(
    cells_ptr, weights_ptr, cell_ptr, weight_ptr,  # out: [B, T, H], [B, T, R, N]; in: [H], [R, N]
    batch, length, steps, hidden, rows,
    R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Steps past the end of an episode keep the last state."""
    weight = load_heads(weight_ptr, rows, R, BLOCK_H, BLOCK_R)
    for t in range(length, steps):
        at = batch * steps + t
        for first in range(0, hidden, BLOCK_C):
            cell = load_column(cell_ptr, 0, first, hidden, BLOCK_C)
            store_column(cells_ptr + at * hidden, cell, 0, first, hidden, BLOCK_C)
        store_heads(weights_ptr + at * R * rows, weight, rows, R, BLOCK_H, BLOCK_R)


# At each step: 4 * H * K + R * P * H weights from L2.
@triton.jit
def _lrua_scan_fwd_kernel(
    gates_ptr, key_ptr, add_ptr, recurrent_ptr, interface_ptr, bias_ptr,  # in
    memory_ptr, usage_ptr, previous_ptr, input_ptr, c_ptr, lengths_ptr,  # input: [B, H + R * M]
    scratch_ptr,  # see below
    y_ptr, memory_out_ptr, usage_out_ptr, weight_out_ptr, c_out_ptr,  # out
    activated_ptr, cells_ptr, heads_ptr, weights_ptr, rows_ptr, checkpoints_ptr,
    steps, hidden, recurrent_size, rows, width, every, decay, eps,
    R: tl.constexpr, PER_HEAD: tl.constexpr, READ_FIRST: tl.constexpr, SHARED: tl.constexpr,
    STRENGTH: tl.constexpr, WRITE_KEY: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, VECTOR_K: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    width = known_divisor(width, VECTOR)
    recurrent_size = known_divisor(recurrent_size, VECTOR_K)
    hidden = known_divisor(hidden, VECTOR_K)
    vectors = R * width
    y_width = hidden + vectors
    weights_size, size = R * rows, rows * width  # of an element: less than 2^31
    checkpoints = tl.cdiv(steps, every)
    # Regions of scratch, of constant sizes: keys, adds, scores, usage twice, strengths, gates.
    VECTORS: tl.constexpr = R * BLOCK_M
    scratch_size = 2 * VECTORS + R * BLOCK_N + 2 * BLOCK_N + 2 * R
    usages = scratch_ptr + batch * scratch_size + 2 * VECTORS + R * BLOCK_N
    length = steps_of(lengths_ptr, batch, steps)
    tile = load_tile(
        memory_ptr + batch * size, 0, rows, width, width, 1, BLOCK_N, BLOCK_M
    )  # fmt: skip
    store_column(
        usages, load_column(usage_ptr + batch * rows, 0, 0, rows, BLOCK_N), 0, 0, rows, BLOCK_N
    )
    input, before = input_ptr + batch * y_width, c_ptr + batch * hidden
    previous = previous_ptr + batch * weights_size
    for t in tl.range(length, disable_licm=True):
        at = batch * steps + t
        zero = t // steps  # not known to the compiler: else it keeps addresses for all steps
        keys = scratch_ptr + (batch + zero) * scratch_size
        adds, scores = keys + VECTORS, keys + 2 * VECTORS
        usage_in = scores + R * BLOCK_N + t % 2 * BLOCK_N
        usage_out = scores + R * BLOCK_N + (t + 1) % 2 * BLOCK_N
        strengths = scores + (R + 2) * BLOCK_N
        gates = strengths + R
        if t % every == 0:
            store_tile(
                checkpoints_ptr + (batch * checkpoints + t // every) * size, tile, zero, rows,
                width, BLOCK_N, BLOCK_M,
            )  # fmt: skip
        h, cell, weight = y_ptr + at * y_width, cells_ptr + at * hidden, weights_ptr + at * R * rows
        least = rows_ptr + at * R
        open_gates(
            gates_ptr + at * 4 * hidden, recurrent_ptr, input, before,
            activated_ptr + at * 4 * hidden, cell, h, hidden, recurrent_size, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        _command(
            interface_ptr, bias_ptr, h,
            key_ptr + at * vectors if key_ptr is not None else None,
            add_ptr + at * vectors if add_ptr is not None else None,
            heads_ptr + at * R * PER_HEAD, keys, adds, strengths, gates, hidden, width,
            R, PER_HEAD, STRENGTH, WRITE_KEY, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        find_least(usage_in, least, rows, R, BLOCK_N)
        tl.debug_barrier()
        written = write_rows(
            tile, previous, gates, adds, least, zero, rows, width, R, SHARED, BLOCK_N, BLOCK_M
        )
        source = tile if READ_FIRST else written
        for r in range(R):  # one head at a time: fewer registers
            score(
                source, keys + r * width, strengths + r, scores + r * rows, zero, rows, width, eps,
                1, BLOCK_N, BLOCK_M,
            )  # fmt: skip
        tl.debug_barrier()
        found = softmax(load_heads(scores, rows, R, BLOCK_H, BLOCK_N), rows, BLOCK_N)
        store_heads(weight, found, rows, R, BLOCK_H, BLOCK_N)
        tl.debug_barrier()
        read(source, weight, h + hidden, zero, rows, width, R, BLOCK_N, BLOCK_M)
        store_usage(
            usage_in, weight, previous, gates, least, usage_out, zero, rows, decay,
            R, SHARED, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        tile = written
        input, before, previous = h, cell, weight
    tl.debug_barrier()
    store_tile(
        memory_out_ptr + batch * size, tile, batch * 0, rows, width, BLOCK_N, BLOCK_M
    )  # fmt: skip
    usage = load_column(usages + length % 2 * BLOCK_N, 0, 0, rows, BLOCK_N)
    store_column(usage_out_ptr + batch * rows, usage, 0, 0, rows, BLOCK_N)
    store_state(
        previous, before, weight_out_ptr + batch * weights_size, c_out_ptr + batch * hidden,
        hidden, rows, R, BLOCK_H, BLOCK_N, BLOCK_C,
    )  # fmt: skip
    if lengths_ptr is not None:
        _rest(
            cells_ptr, weights_ptr, before, previous, batch, length, steps, hidden, rows,
            R, BLOCK_H, BLOCK_N, BLOCK_C,
        )  # fmt: skip


def lrua_scan(
    gates: torch.Tensor,
    key: torch.Tensor | None,
    add: torch.Tensor | None,
    recurrent: torch.Tensor,
    interface: torch.Tensor,
    bias: torch.Tensor,
    memory: torch.Tensor,
    usage: torch.Tensor,
    previous: torch.Tensor,
    reads: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    lengths: torch.Tensor | None,
    decay: float,
    read_first: bool,
    shared: bool,
    strength: bool,
    write_key: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the forward: what an episode gives, and what its backward needs."""
    (batch, steps, _), (_, rows, width) = gates.shape, memory.shape
    heads, hidden, numbers = previous.shape[1], c.shape[1], bias.shape[0]
    every = every_of(steps)
    options = (decay, read_first, shared, strength, write_key, eps)
    constants = constants_of(memory, recurrent, interface, previous, c, options)
    new = gates.new_empty if lengths is None else gates.new_zeros  # zeros behind an episode's end
    out = (
        new(batch, steps, hidden + heads * width),
        *(floats(x, *x.shape) for x in (memory, usage, previous, c)),
        new(batch, steps, 4 * hidden),
        floats(gates, batch, steps, hidden),
        new(batch, steps, numbers),
        floats(gates, batch, steps, heads, rows),
        new(batch, steps, heads, dtype=torch.int64),
        new(batch, triton.cdiv(steps, every), rows, width),
    )
    if batch == 0:
        return out
    vectors, block = heads * constants["BLOCK_M"], constants["BLOCK_N"]
    scratch = floats(memory, batch, 2 * vectors + (heads + 2) * block + 2 * heads)
    with torch.cuda.device_of(memory):
        _lrua_scan_fwd_kernel[(batch,)](
            *(gates.contiguous(), dense(key), dense(add)),
            *contiguous(recurrent, interface, bias, memory, usage, previous),
            *(torch.cat([h, reads], 1), c.contiguous(), dense(lengths)),
            *(scratch, *out),
            *(steps, hidden, recurrent.shape[1], rows, width, every, decay, eps),
            **constants,
        )
    return out
