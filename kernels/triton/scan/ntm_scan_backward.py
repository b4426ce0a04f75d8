"""Triton implementation of the backward of stmeta::ntm_scan; see ntm_scan.py.

A program walks back through its sequence. The memories of a segment of ceil(sqrt(T)) steps are made
again from the checkpoint that the forward kept.
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
from ..memory.content_addressing import score, score_backward, softmax, softmax_backward
from ..memory.erase_add import keep, write, write_backward
from ..memory.location_addressing import locate_backward
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
from ._ntm_scan import constants_of, spread


@triton.jit
def _repeat(
    heads_ptr, step_weights_ptr, mark_ptr, past_ptr,  # in: all [B, T, P], [B, T, A, N]; [N, M]; out
    batch, begin, end, steps, rows, width,
    A: tl.constexpr, R: tl.constexpr, W: tl.constexpr, PER_HEAD: tl.constexpr,
    NUMBERS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Memories before the steps of [begin, end], again from the checkpoint and what was written."""
    copy_memory(mark_ptr, past_ptr, begin // steps, rows, width, CHUNKS, CHUNK, BLOCK_M)
    for t in tl.range(begin, end, disable_licm=True):
        zero = t // steps  # as in the forward
        at = batch * steps + t
        weight = step_weights_ptr + (at * A + R) * rows
        erase = heads_ptr + at * NUMBERS + A * PER_HEAD
        before = past_ptr + (t - begin).to(tl.int64) * (rows * width)
        tl.debug_barrier()  # threads read what others have written
        for chunk in tl.range(CHUNKS, disable_licm=True):
            first = zero + chunk * CHUNK
            memory = load_tile(before, first, rows, width, width, 1, CHUNK, BLOCK_M)
            memory = write(
                memory, weight, erase, erase + W * width, first, rows, width, W, CHUNK, BLOCK_M
            )  # fmt: skip
            store_tile(before + rows * width, memory, first, rows, width, CHUNK, BLOCK_M)


@triton.jit
def _load_heads(
    heads_ptr, gates, sharpens, shifts, width,  # in: [P]; out: see `spread`
    A: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for first in range(0, A * PER_HEAD, BLOCK):
        i = first + tl.arange(0, BLOCK)
        live = i < A * PER_HEAD
        x = tl.load(heads_ptr + i, mask=live, other=0.0)
        spread(x, i, live, gates, sharpens, shifts, width, A, S, PER_HEAD)


@triton.jit
def _look_back(
    memory_ptr, d_memory_ptr, heads, weight, d_weight, grad_read,  # in:  [N, M] x2, [P], [A, N] x2
    scores, grads, d_erases, d_adds,  # out: [A, N] x2; this chunk's parts of [W, M] x2
    none, first, rows, width, eps,  # none: zero, unknown to the compiler
    R: tl.constexpr, W: tl.constexpr, PER_HEAD: tl.constexpr, READ_FIRST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Scores again, and the gradient of all weights: as given, by reading and by writing."""
    memory = load_tile(memory_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
    grad = load_tile(d_memory_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
    writes, erase = weight + R * rows, heads + (R + W) * PER_HEAD
    add = erase + W * width
    read_from = memory
    if not READ_FIRST:
        grad = outer(grad, weight, grad_read, first, rows, width, R, CHUNK, BLOCK_M)
        read_from = write(memory, writes, erase, add, first, rows, width, W, CHUNK, BLOCK_M)
    for a in range(R + W + none):
        head = heads + a * PER_HEAD
        score(
            memory, head, head + width, scores + a * rows, first, rows, width, eps,
            1, CHUNK, BLOCK_M,
        )  # fmt: skip
    for r in range(R + none):
        d = load_column(d_weight, r, first, rows, CHUNK)
        d += tl.sum(read_from * load_vector(grad_read, r, width, BLOCK_M)[None, :], 1)
        store_column(grads, d, r, first, rows, CHUNK)
    for w in range(W + none):
        d = load_column(d_weight, R + w, first, rows, CHUNK)
        d += write_backward(
            memory, grad, writes, erase, add, w, d_erases, d_adds, first, rows, width,
            W, CHUNK, BLOCK_M,
        )  # fmt: skip
        store_column(grads, d, R + w, first, rows, CHUNK)


@triton.jit
def _write_back(
    memory_ptr, d_memory_ptr, heads, weight, grad_read, d_scores,  # in: as `_look_back`; [A, N]
    d_keys, d_strengths,  # out: this chunk's parts of [A, M], [A]
    none, first, rows, width, eps,  # none: zero, unknown to the compiler
    R: tl.constexpr, W: tl.constexpr, PER_HEAD: tl.constexpr, READ_FIRST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient of the memory, a step back, in its place."""
    grad = load_tile(d_memory_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
    if not READ_FIRST:
        grad = outer(grad, weight, grad_read, first, rows, width, R, CHUNK, BLOCK_M)
    grad = keep(
        grad, weight + R * rows, heads + (R + W) * PER_HEAD, -1, first, rows, width,
        W, CHUNK, BLOCK_M,
    )  # fmt: skip
    if READ_FIRST:
        grad = outer(grad, weight, grad_read, first, rows, width, R, CHUNK, BLOCK_M)
    memory = load_tile(memory_ptr, first, rows, width, width, 1, CHUNK, BLOCK_M)
    for a in range(R + W + none):  # one head at a time: fewer registers
        head = heads + a * PER_HEAD
        grad = score_backward(
            memory, grad, d_scores + a * rows, head, head + width, d_keys + a * width,
            d_strengths + a, first, rows, width, eps, False, 1, CHUNK, BLOCK_M,
        )  # fmt: skip
    tl.debug_barrier()  # other threads may have read what this one writes
    store_tile(d_memory_ptr, grad, first, rows, width, CHUNK, BLOCK_M)


@triton.jit
def _add_parts(
    parts, heads, d_keys, d_strengths, d_erases, d_adds, width, eps,  # parts: see the kernel
    A: tl.constexpr, W: tl.constexpr, PER_HEAD: tl.constexpr,
    CHUNKS: tl.constexpr, PART: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks of rows, in order. Barriers on both sides."""
    tl.debug_barrier()
    for a in range(A):
        of_key, of_strength = tl.zeros([BLOCK_M], tl.float32), 0.0
        for chunk in range(CHUNKS):
            part = parts + chunk * PART
            of_key += load_vector(part, a, width, BLOCK_M)
            of_strength += load_number(part + (A + 2 * W) * BLOCK_M, a)
        key = load_vector(heads + a * PER_HEAD, 0, width, BLOCK_M)
        store_vector(d_keys, key_grad(of_key, key, eps), a, width, BLOCK_M)
        tl.store(d_strengths + a, of_strength)
    for w in range(W):
        of_erase = tl.zeros([BLOCK_M], tl.float32)
        of_add = of_erase
        for chunk in range(CHUNKS):
            part = parts + chunk * PART + A * BLOCK_M
            of_erase += load_vector(part, w, width, BLOCK_M)
            of_add += load_vector(part + W * BLOCK_M, w, width, BLOCK_M)
        store_vector(d_erases, of_erase, w, width, BLOCK_M)
        store_vector(d_adds, of_add, w, width, BLOCK_M)
    tl.debug_barrier()


@triton.jit
def _grad_heads(
    heads_ptr, d_keys, d_strengths, d_sharpens, d_gates, d_shifts, shifts,  # in: [P], [A, M], ...
    d_erases, d_adds,  # in: [W, M] x2
    out_ptr,  # out: [P], of the raw numbers
    width,
    A: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
    NUMBERS: tl.constexpr, TANH_KEY: tl.constexpr, TANH_ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for first in range(0, NUMBERS, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(heads_ptr + i, mask=i < NUMBERS, other=0.0)
        a, j, k = i // PER_HEAD, i % PER_HEAD - width, i - A * PER_HEAD
        of_head, of_erase = k < 0, (k >= 0) & (k < W * width)
        of_add = (k >= W * width) & (i < NUMBERS)
        of_shift = of_head & (j >= 3)
        # Only one of these is not zero. The slope of softplus(x) is 1 - e^-softplus(x).
        d = tl.load(d_keys + a * width + j + width, mask=of_head & (j < 0), other=0.0)
        if TANH_KEY:
            d -= d * x * x
        positive = tl.load(d_strengths + a, mask=of_head & (j == 0), other=0.0)
        positive += tl.load(d_sharpens + a, mask=of_head & (j == 1), other=0.0)
        d += positive * (1.0 - tl.exp(tl.where(of_head & (j >= 0) & (j < 2), -x, 0.0)))
        bounded = tl.load(d_gates + a, mask=of_head & (j == 2), other=0.0)
        bounded += tl.load(d_erases + k, mask=of_erase, other=0.0)
        d += bounded * x * (1.0 - x)
        mean = tl.zeros([BLOCK], tl.float32)
        for s in range(S):
            tap = tl.load(shifts + a * S + s, mask=of_shift, other=0.0)
            mean += tap * tl.load(d_shifts + a * S + s, mask=of_shift, other=0.0)
        d_shift = tl.load(d_shifts + a * S + j - 3, mask=of_shift, other=0.0)
        d += x * (d_shift - mean)
        d_add = tl.load(d_adds + k - W * width, mask=of_add, other=0.0)
        if TANH_ADD:
            d_add -= d_add * x * x
        tl.store(out_ptr + i, d + d_add, mask=i < NUMBERS)


# At each step: 4 * H * K + P * H weights from L2, and a memory some five times.
@triton.jit
def _ntm_scan_bwd_kernel(
    grad_y_ptr, grad_memory_ptr, grad_weights_ptr, grad_c_ptr,  # in
    recurrent_ptr, interface_ptr, first_ptr, c_ptr, lengths_ptr,  # first: weights
    activated_ptr, cells_ptr, heads_ptr, step_weights_ptr, checkpoints_ptr,
    past_ptr, scratch_ptr,  # scratch [B, every + 1, N, M]; see below
    d_gates_ptr, d_heads_ptr, d_memory_ptr, d_weights_ptr,  # out
    d_reads_ptr, d_h_ptr, d_c_ptr,
    steps, hidden, rows, width, every, eps,
    A: tl.constexpr, R: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PER_HEAD: tl.constexpr,
    NUMBERS: tl.constexpr, READ_FIRST: tl.constexpr, TANH_KEY: tl.constexpr,
    TANH_ADD: tl.constexpr, FED_READS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, VECTOR_K: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    width = known_divisor(width, VECTOR)
    hidden = known_divisor(hidden, VECTOR_K)
    vectors, size, weights_size = R * width, rows * width, A * rows
    y_width = hidden + vectors
    recurrent_size = known_divisor(y_width if FED_READS else hidden, VECTOR_K)
    WEIGHTS: tl.constexpr = A * BLOCK_N
    CHUNKS: tl.constexpr = (BLOCK_N + CHUNK - 1) // CHUNK
    # Regions of scratch, [A, N]: scores, gradients of the weights and then of the scores, gated and
    # moved weights, gradients of the weights before and after a step; [R, M], [A, M], [W, M] x2:
    # gradients of reads, keys, erase and add vectors; [A]: gates, sharpness, gradients of both and
    # of strengths; [A, S]: shifts, their gradients; then gradients of the cell before and after a
    # step, of h and the reads, and each chunk's parts of sums. Constant sizes save pointers.
    PART: tl.constexpr = (A + 2 * W) * BLOCK_M + A
    VECTORS: tl.constexpr = (R + A + 2 * W) * BLOCK_M
    scratch_size = 6 * WEIGHTS + VECTORS + A * (5 + 2 * S) + 2 * hidden + y_width + CHUNKS * PART
    past = past_ptr + batch * (every + 1) * size
    length = steps_of(lengths_ptr, batch, steps)
    d_memory = d_memory_ptr + batch * size  # the gradient as it stands
    given, none = grad_memory_ptr + batch * size, length // (steps + 1)  # as `zero`
    copy_memory(given, d_memory, none, rows, width, CHUNKS, CHUNK, BLOCK_M)
    d_weight, d_cell = grad_weights_ptr + batch * weights_size, grad_c_ptr + batch * hidden
    segments = tl.cdiv(length, every)
    for segment in tl.range(segments, disable_licm=True):
        begin = (segments - 1 - segment) * every
        end = tl.minimum(begin + every, length)
        _repeat(
            heads_ptr, step_weights_ptr,
            checkpoints_ptr + (batch * tl.cdiv(steps, every) + begin // every) * size, past,
            batch, begin, end - 1, steps, rows, width,
            A, R, W, PER_HEAD, NUMBERS, CHUNKS, CHUNK, BLOCK_M,
        )  # fmt: skip
        for done in tl.range(end - begin, disable_licm=True):
            t = end - 1 - done
            at = batch * steps + t
            zero = t // steps  # as in the forward
            scores = scratch_ptr + (batch + zero) * scratch_size
            grads, gated, moved = scores + WEIGHTS, scores + 2 * WEIGHTS, scores + 3 * WEIGHTS
            d_previous = scores + (4 + t % 2) * WEIGHTS
            grad_read = scores + 6 * WEIGHTS
            d_keys = grad_read + R * BLOCK_M
            d_erases = d_keys + A * BLOCK_M
            d_adds = d_erases + W * BLOCK_M
            gates = grad_read + VECTORS
            sharpens, d_gates, d_sharpens = gates + A, gates + 2 * A, gates + 3 * A
            d_strengths, shifts = gates + 4 * A, gates + 5 * A
            d_shifts, d_cells = shifts + A * S, shifts + 2 * A * S
            d_input = d_cells + 2 * hidden
            parts, d_before = d_input + y_width, d_cells + t % 2 * hidden
            heads, weight = heads_ptr + at * NUMBERS, step_weights_ptr + at * weights_size
            grad_y = grad_y_ptr + at * y_width
            memory = past + (t - begin).to(tl.int64) * size
            grad_of_read(grad_y + hidden, d_input + hidden, grad_read, vectors, FED_READS, BLOCK_K)
            _load_heads(heads, gates, sharpens, shifts, width, A, S, PER_HEAD, BLOCK_K)
            tl.debug_barrier()
            for chunk in tl.range(CHUNKS, disable_licm=True):
                none = chunk // (steps + CHUNKS)  # as `zero`
                of_erases = parts + chunk * PART + A * BLOCK_M
                _look_back(
                    memory, d_memory, heads + none, weight + none, d_weight + none,
                    grad_read + none, scores + none, grads + none,
                    of_erases, of_erases + W * BLOCK_M,
                    none, zero + chunk * CHUNK, rows, width, eps,
                    R, W, PER_HEAD, READ_FIRST, CHUNK, BLOCK_M,
                )  # fmt: skip
            tl.debug_barrier()
            content = softmax(load_heads(scores, rows, A, BLOCK_H, BLOCK_N), rows, BLOCK_N)
            d = locate_backward(
                load_heads(grads, rows, A, BLOCK_H, BLOCK_N), content,
                before_step(first_ptr, step_weights_ptr, batch, steps, t, weights_size),
                gates, shifts, sharpens, gated, moved, d_previous, d_gates, d_shifts, d_sharpens,
                rows, A, S, BLOCK_H, BLOCK_N,
            )  # fmt: skip
            store_heads(grads, softmax_backward(content, d), rows, A, BLOCK_H, BLOCK_N)
            tl.debug_barrier()
            for chunk in tl.range(CHUNKS, disable_licm=True):
                none = chunk // (steps + CHUNKS)  # as `zero`
                part = parts + chunk * PART
                _write_back(
                    memory, d_memory, heads + none, weight + none, grad_read + none, grads + none,
                    part, part + (A + 2 * W) * BLOCK_M,
                    none, zero + chunk * CHUNK, rows, width, eps,
                    R, W, PER_HEAD, READ_FIRST, CHUNK, BLOCK_M,
                )  # fmt: skip
            _add_parts(
                parts, heads, d_keys, d_strengths, d_erases, d_adds, width, eps,
                A, W, PER_HEAD, CHUNKS, PART, BLOCK_M,
            )  # fmt: skip
            _grad_heads(
                heads, d_keys, d_strengths, d_sharpens, d_gates, d_shifts, shifts,
                d_erases, d_adds, d_heads_ptr + at * NUMBERS, width,
                A, W, S, PER_HEAD, NUMBERS, TANH_KEY, TANH_ADD, BLOCK_K,
            )  # fmt: skip
            controller_back(
                grad_y, d_heads_ptr + at * NUMBERS, interface_ptr, recurrent_ptr,
                activated_ptr + at * 4 * hidden, cells_ptr + at * hidden,
                before_step(c_ptr, cells_ptr, batch, steps, t, hidden),
                d_cell, d_input, d_gates_ptr + at * 4 * hidden, d_before, hidden,
                recurrent_size, zero, NUMBERS, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            d_weight, d_cell = d_previous, d_before
    d_input = scratch_ptr + (batch + 1) * scratch_size - CHUNKS * PART - y_width
    store_state(
        d_weight, d_cell, d_weights_ptr + batch * weights_size, d_c_ptr + batch * hidden,
        hidden, rows, A, BLOCK_H, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_input_grad(
        d_input, d_h_ptr + batch * hidden, d_reads_ptr + batch * vectors, hidden, vectors, BLOCK_K
    )  # fmt: skip


def ntm_scan_backward(
    grad_y: torch.Tensor,
    grad_memory: torch.Tensor,
    grad_weights: torch.Tensor,
    grad_c: torch.Tensor,
    recurrent: torch.Tensor,
    interface: torch.Tensor,
    weights: torch.Tensor,
    c: torch.Tensor,
    lengths: torch.Tensor | None,
    activated: torch.Tensor,
    cells: torch.Tensor,
    heads: torch.Tensor,
    step_weights: torch.Tensor,
    checkpoints: torch.Tensor,
    taps: int,
    read_first: bool,
    tanh_key: bool,
    tanh_add: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Launch the backward: gradients of gates, raw heads, and the first state."""
    (batch, steps, hidden), (_, rows, width) = cells.shape, grad_memory.shape
    read = grad_y.shape[2] - hidden
    every = every_of(steps)
    options = (taps, read_first, tanh_key, tanh_add, eps)
    constants = constants_of(grad_memory, recurrent, interface, weights, hidden, read, options)
    new = cells.new_empty if lengths is None else cells.new_zeros  # zeros behind a sequence's end
    out = (
        *(new(batch, steps, 4 * hidden), new(batch, steps, heads.shape[2])),
        *(floats(x, *x.shape) for x in (grad_memory, weights)),
        floats(c, batch, read),
        *(floats(c, *c.shape), floats(c, *c.shape)),
    )
    if batch == 0:
        return out
    count, writing, block_m = constants["A"], constants["W"], constants["BLOCK_M"]
    chunk = min(CHUNK, constants["BLOCK_N"])
    parts = triton.cdiv(constants["BLOCK_N"], chunk) * ((count + 2 * writing) * block_m + count)
    vectors = (2 * count + writing) * block_m
    own = 6 * count * constants["BLOCK_N"] + vectors + count * (5 + 2 * taps) + parts
    scratch = (
        floats(c, batch, every + 1, rows, width),
        c.new_zeros(batch, own + 3 * hidden + read),  # nothing comes from behind the last step
    )
    with torch.cuda.device_of(c):
        _ntm_scan_bwd_kernel[(batch,)](
            *contiguous(grad_y, grad_memory, grad_weights, grad_c),
            *(*contiguous(recurrent, interface, weights, c), dense(lengths)),
            *contiguous(activated, cells, heads, step_weights, checkpoints),
            *(*scratch, *out),
            *(steps, hidden, rows, width, every, eps),
            **constants,
            FED_READS=recurrent.shape[1] > hidden,
            CHUNK=chunk,
        )
    return out
