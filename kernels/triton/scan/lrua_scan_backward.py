"""Triton implementation of the backward of stmeta::lrua_scan; see lrua_scan.py.

A program walks back through its episode, with the gradient of the memory in registers. The memories
of a segment of ceil(sqrt(T)) steps are made again from the checkpoint that the forward kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..memory._common import (
    contiguous,
    floats,
    key_grad,
    load_column,
    load_heads,
    load_number,
    load_tile,
    load_vector,
    outer,
    store_column,
    store_heads,
    store_tile,
    store_vector,
)
from ..memory.content_addressing import score_backward, softmax_backward
from ..memory.lrua_step import write_rows, write_rows_backward
from ._common import (
    CHUNK,
    before_step,
    controller_back,
    copy_memory,
    dense,
    every_of,
    grad_of_read,
    known_divisor,
    steps_of,
    store_input_grad,
    store_state,
)
from ._lrua_scan import constants_of, spread


@triton.jit
def _load_heads(
    heads_ptr, add_ptr, keys, adds, strengths, gates, width,  # in:  [R * P]; see `spread`
    R: tl.constexpr, PER_HEAD: tl.constexpr, WRITE_KEY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A step's heads, as the forward kept them. Barriers on both sides."""
    tl.debug_barrier()
    for first in range(0, R * PER_HEAD, BLOCK):
        i = first + tl.arange(0, BLOCK)
        live = i < R * PER_HEAD
        x = tl.load(heads_ptr + i, mask=live, other=0.0)
        spread(x, i, live, add_ptr, keys, adds, strengths, gates, width, WRITE_KEY, PER_HEAD)
    tl.debug_barrier()


@triton.jit
def _grad_heads(
    d_keys, d_adds, d_strengths, d_gates, strengths, gates,  # in:  [R, M] x2, [R] x4
    d_heads_ptr,  # out: [R * P], of the raw numbers
    width,
    R: tl.constexpr, PER_HEAD: tl.constexpr, STRENGTH: tl.constexpr, WRITE_KEY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    for first in range(0, R * PER_HEAD, BLOCK):
        i = first + tl.arange(0, BLOCK)
        live = i < R * PER_HEAD
        r, j = i // PER_HEAD, i % PER_HEAD
        place = r * width + j
        of_key = live & (j < width)
        d = tl.load(d_keys + place, mask=of_key, other=0.0)
        if WRITE_KEY:
            d += tl.load(d_adds + place, mask=of_key, other=0.0)
        else:
            of_add = live & (j >= width) & (j < 2 * width)
            d += tl.load(d_adds + place - width, mask=of_add, other=0.0)
        if STRENGTH:  # 1 + 10 softplus(x), of which the slope is 10 (1 - e^-softplus(x))
            of_strength = live & (j == PER_HEAD - 2)
            strength = tl.load(strengths + r, mask=of_strength, other=1.0)
            slope = 10.0 - 10.0 * tl.exp((1.0 - strength) * 0.1)
            d += slope * tl.load(d_strengths + r, mask=of_strength, other=0.0)
        of_gate = live & (j == PER_HEAD - 1)
        gate = tl.load(gates + r, mask=of_gate, other=0.0)
        d += gate * (1.0 - gate) * tl.load(d_gates + r, mask=of_gate, other=0.0)
        tl.store(d_heads_ptr + i, d, mask=live)


@triton.jit
def _finish(
    parts, keys, d_keys, d_written, d_strengths, d_gates, width, eps,  # parts: see the kernel
    R: tl.constexpr, CHUNKS: tl.constexpr, PART: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks of rows, in order. Barriers on both sides."""
    tl.debug_barrier()
    VECTORS: tl.constexpr = R * BLOCK_M
    for r in range(R):
        of_key = tl.zeros([BLOCK_M], tl.float32)
        of_add, of_strength, of_gate = of_key, 0.0, 0.0
        for chunk in range(CHUNKS):
            part = parts + chunk * PART
            of_key += load_vector(part, r, width, BLOCK_M)
            of_add += load_vector(part + VECTORS, r, width, BLOCK_M)
            of_strength += load_number(part + 2 * VECTORS, r)
            of_gate += load_number(part + 2 * VECTORS + R, r)
        key = load_vector(keys, r, width, BLOCK_M)
        store_vector(d_keys, key_grad(of_key, key, eps), r, width, BLOCK_M)
        store_vector(d_written, of_add, r, width, BLOCK_M)
        tl.store(d_strengths + r, of_strength)
        tl.store(d_gates + r, of_gate)
    tl.debug_barrier()


# At each step: 4 * H * K + R * P * H weights from L2, and a memory twice.
@triton.jit
def _lrua_scan_bwd_kernel(
    grad_y_ptr, grad_memory_ptr, grad_weight_ptr, grad_c_ptr,  # in
    add_ptr, recurrent_ptr, interface_ptr, previous_ptr, c_ptr, lengths_ptr,
    activated_ptr, cells_ptr, heads_ptr, weights_ptr, rows_ptr, checkpoints_ptr,
    past_ptr, scratch_ptr,  # scratch [B, every + 1, N, M]; see below
    d_gates_ptr, d_heads_ptr, d_written_ptr, d_memory_ptr, d_previous_ptr,  # out
    d_reads_ptr, d_h_ptr, d_c_ptr,
    steps, hidden, rows, width, every, eps,
    R: tl.constexpr, PER_HEAD: tl.constexpr, READ_FIRST: tl.constexpr, SHARED: tl.constexpr,
    STRENGTH: tl.constexpr, WRITE_KEY: tl.constexpr, FED_READS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, VECTOR_K: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    width = known_divisor(width, VECTOR)
    hidden = known_divisor(hidden, VECTOR_K)
    vectors, size, weights_size = R * width, rows * width, R * rows
    y_width = hidden + vectors
    recurrent_size = known_divisor(y_width if FED_READS else hidden, VECTOR_K)
    NUMBERS: tl.constexpr = R * PER_HEAD
    VECTORS: tl.constexpr = R * BLOCK_M
    WEIGHTS: tl.constexpr = R * BLOCK_N
    CHUNKS: tl.constexpr = (BLOCK_N + CHUNK - 1) // CHUNK
    # Regions of scratch: keys, adds, gradients of reads, of keys [R, M]; gradients of the scores,
    # of the weights before and after a step [R, N]; strengths, gates, their gradients [R];
    # gradients of the cell before and after a step [H], of h and the reads [H + R * M]; of each
    # chunk, parts of the gradients of keys, adds, strengths, gates. Constant sizes save pointers.
    PART: tl.constexpr = 2 * VECTORS + 2 * R
    scratch_size = 4 * VECTORS + 3 * WEIGHTS + 4 * R + 2 * hidden + y_width + CHUNKS * PART
    past = past_ptr + batch * (every + 1) * size
    length = steps_of(lengths_ptr, batch, steps)
    d_memory = d_memory_ptr + batch * size  # the gradient as it stands
    copy_memory(
        grad_memory_ptr + batch * size, d_memory, length // (steps + 1), rows, width,
        CHUNKS, CHUNK, BLOCK_M,
    )  # fmt: skip
    tl.debug_barrier()
    d_weight, d_cell = grad_weight_ptr + batch * weights_size, grad_c_ptr + batch * hidden
    segments = tl.cdiv(length, every)
    for segment in tl.range(segments, disable_licm=True):
        begin = (segments - 1 - segment) * every
        end = tl.minimum(begin + every, length)
        checkpoint = checkpoints_ptr + (batch * tl.cdiv(steps, every) + begin // every) * size
        copy_memory(checkpoint, past, segment // steps, rows, width, CHUNKS, CHUNK, BLOCK_M)
        for t in tl.range(begin, end, disable_licm=True):
            at = batch * steps + t
            zero = t // steps  # as in the forward
            keys = scratch_ptr + (batch + zero) * scratch_size
            adds, strengths = keys + VECTORS, keys + 4 * VECTORS + 3 * WEIGHTS
            gates = strengths + R
            _load_heads(
                heads_ptr + at * NUMBERS,
                add_ptr + at * vectors if add_ptr is not None else None,
                keys, adds, strengths, gates, width, R, PER_HEAD, WRITE_KEY, BLOCK_K,
            )  # fmt: skip
            previous = before_step(previous_ptr, weights_ptr, batch, steps, t, weights_size)
            before = past + (t - begin).to(tl.int64) * size
            for chunk in tl.range(CHUNKS, disable_licm=True):
                first = zero + chunk * CHUNK
                memory = load_tile(before, first, rows, width, width, 1, CHUNK, BLOCK_M)
                memory = write_rows(
                    memory, previous, gates, adds, rows_ptr + at * R, first, rows, width,
                    R, SHARED, CHUNK, BLOCK_M,
                )  # fmt: skip
                store_tile(before + size, memory, first, rows, width, CHUNK, BLOCK_M)
        for done in tl.range(end - begin, disable_licm=True):
            t = end - 1 - done
            at = batch * steps + t
            zero = t // steps
            keys = scratch_ptr + (batch + zero) * scratch_size
            adds, grad_read, d_keys = keys + VECTORS, keys + 2 * VECTORS, keys + 3 * VECTORS
            grads = keys + 4 * VECTORS
            d_weights, strengths = grads + WEIGHTS, grads + 3 * WEIGHTS
            gates, d_strengths, d_head_gates = strengths + R, strengths + 2 * R, strengths + 3 * R
            d_cells = strengths + 4 * R
            d_input = d_cells + 2 * hidden
            parts = d_input + y_width
            least, weight = rows_ptr + at * R, weights_ptr + at * weights_size
            grad_y = grad_y_ptr + at * y_width
            d_gates, d_heads = d_gates_ptr + at * 4 * hidden, d_heads_ptr + at * NUMBERS
            d_written = d_written_ptr + at * vectors
            previous = before_step(previous_ptr, weights_ptr, batch, steps, t, weights_size)
            d_previous, d_before = d_weights + t % 2 * WEIGHTS, d_cells + t % 2 * hidden
            grad_of_read(grad_y + hidden, d_input + hidden, grad_read, vectors, FED_READS, BLOCK_K)
            _load_heads(
                heads_ptr + at * NUMBERS,
                add_ptr + at * vectors if add_ptr is not None else None,
                keys, adds, strengths, gates, width, R, PER_HEAD, WRITE_KEY, BLOCK_K,
            )  # fmt: skip
            read_from = past + (t - begin + (0 if READ_FIRST else 1)).to(tl.int64) * size
            for chunk in tl.range(CHUNKS, disable_licm=True):
                first = zero + chunk * CHUNK
                source = load_tile(read_from, first, rows, width, width, 1, CHUNK, BLOCK_M)
                for r in range(R):
                    d = load_column(d_weight, r, first, rows, CHUNK)
                    d += tl.sum(source * load_vector(grad_read, r, width, BLOCK_M)[None, :], 1)
                    store_column(grads, d, r, first, rows, CHUNK)
            tl.debug_barrier()
            own = load_heads(weight, rows, R, BLOCK_H, BLOCK_N)
            scores = load_heads(grads, rows, R, BLOCK_H, BLOCK_N)
            tl.debug_barrier()  # other threads may have read what this one writes
            store_heads(grads, softmax_backward(own, scores), rows, R, BLOCK_H, BLOCK_N)
            tl.debug_barrier()
            for chunk in tl.range(CHUNKS, disable_licm=True):
                first = zero + chunk * CHUNK
                none = chunk // (steps + CHUNKS)  # as `zero`
                held, of_scores = keys + none, grads + none
                part = parts + chunk * PART
                of_add, of_strength = part + VECTORS, part + 2 * VECTORS
                of_gate = of_strength + R
                grad = load_tile(d_memory, first, rows, width, width, 1, CHUNK, BLOCK_M)
                if READ_FIRST:
                    grad = write_rows_backward(
                        grad, previous + none, gates + none, held + VECTORS, least + none,
                        d_previous + none, of_gate, of_add,
                        first, rows, width, R, SHARED, CHUNK, BLOCK_M,
                    )  # fmt: skip
                grad = outer(
                    grad, weight + none, held + 2 * VECTORS, first, rows, width, R, CHUNK, BLOCK_M
                )  # fmt: skip
                source = load_tile(read_from, first, rows, width, width, 1, CHUNK, BLOCK_M)
                for r in range(R):  # one head at a time: fewer registers
                    grad = score_backward(
                        source, grad, of_scores + r * rows, held + r * width, strengths + none + r,
                        part + r * width, of_strength + r, first, rows, width, eps,
                        False, 1, CHUNK, BLOCK_M,
                    )  # fmt: skip
                if not READ_FIRST:
                    grad = write_rows_backward(
                        grad, previous + none, gates + none, held + VECTORS, least + none,
                        d_previous + none, of_gate, of_add,
                        first, rows, width, R, SHARED, CHUNK, BLOCK_M,
                    )  # fmt: skip
                tl.debug_barrier()  # as above
                store_tile(d_memory, grad, first, rows, width, CHUNK, BLOCK_M)
            _finish(
                parts, keys, d_keys, d_written, d_strengths, d_head_gates, width, eps,
                R, CHUNKS, PART, BLOCK_M,
            )  # fmt: skip
            _grad_heads(
                d_keys, d_written, d_strengths, d_head_gates, strengths, gates, d_heads, width,
                R, PER_HEAD, STRENGTH, WRITE_KEY, BLOCK_K,
            )  # fmt: skip
            controller_back(
                grad_y, d_heads, interface_ptr, recurrent_ptr, activated_ptr + at * 4 * hidden,
                cells_ptr + at * hidden, before_step(c_ptr, cells_ptr, batch, steps, t, hidden),
                d_cell, d_input, d_gates, d_before, hidden,
                recurrent_size, zero, NUMBERS, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            d_weight, d_cell = d_previous, d_before
    d_input = scratch_ptr + (batch + 1) * scratch_size - CHUNKS * PART - y_width
    store_state(
        d_weight, d_cell, d_previous_ptr + batch * weights_size, d_c_ptr + batch * hidden,
        hidden, rows, R, BLOCK_H, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_input_grad(
        d_input, d_h_ptr + batch * hidden, d_reads_ptr + batch * vectors, hidden, vectors, BLOCK_K
    )  # fmt: skip


def lrua_scan_backward(
    grad_y: torch.Tensor,
    grad_memory: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_c: torch.Tensor,
    add: torch.Tensor | None,
    recurrent: torch.Tensor,
    interface: torch.Tensor,
    memory: torch.Tensor,
    previous: torch.Tensor,
    c: torch.Tensor,
    lengths: torch.Tensor | None,
    activated: torch.Tensor,
    cells: torch.Tensor,
    heads: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    checkpoints: torch.Tensor,
    decay: float,
    read_first: bool,
    shared: bool,
    strength: bool,
    write_key: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of gates, raw heads, what is written, and the first state."""
    (batch, steps, hidden), (_, count, width) = cells.shape, memory.shape
    number = previous.shape[1]
    every = every_of(steps)
    options = (decay, read_first, shared, strength, write_key, eps)
    constants = constants_of(memory, recurrent, interface, previous, c, options)
    new = memory.new_empty if lengths is None else memory.new_zeros  # zeros behind an episode's end
    out = (
        *(new(batch, steps, 4 * hidden), new(batch, steps, heads.shape[2])),
        new(batch, steps, number, width),
        *(floats(x, *x.shape) for x in (memory, previous)),
        floats(memory, batch, number * width),
        *(floats(c, *c.shape), floats(c, *c.shape)),
    )
    if batch == 0:
        return out
    vectors, weights_of = number * constants["BLOCK_M"], number * constants["BLOCK_N"]
    chunk = min(CHUNK, constants["BLOCK_N"])
    parts = triton.cdiv(constants["BLOCK_N"], chunk) * (2 * vectors + 2 * number)
    own = 4 * vectors + 3 * weights_of + 4 * number + parts
    scratch = (
        floats(memory, batch, every + 1, count, width),
        memory.new_zeros(batch, own + 3 * hidden + number * width),
    )
    with torch.cuda.device_of(memory):
        _lrua_scan_bwd_kernel[(batch,)](
            *contiguous(grad_y, grad_memory, grad_weight, grad_c),
            *(dense(add), *contiguous(recurrent, interface, previous, c), dense(lengths)),
            *contiguous(activated, cells, heads, weights, rows, checkpoints),
            *(*scratch, *out),
            *(steps, hidden, count, width, every, eps),
            **constants,
            FED_READS=recurrent.shape[1] > hidden,
            CHUNK=chunk,
        )
    return out
