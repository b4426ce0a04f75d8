"""Triton implementation of stmeta::locality_attention. Reference: stmeta.ops.locality_attention.

Blocks of queries meet blocks of keys, read from the packed projections where they lie; the weights
of a pair of blocks live in registers only. The backward has a kernel with fixed keys (gradients of
keys and values) and one with fixed queries (gradients of queries and of the temperature), so that
nothing is added up across programs but one number each.

Letters: B batch, N tokens, H heads, E width of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


# Programs lie along the first axis alone: along another there may be at most 65,535, and clips
# times heads can be more.
@triton.jit
def _place(tokens, BLOCK: tl.constexpr):
    """(clip, head) of this program, and its block of rows in it; those of one lie side by side."""
    blocks = tl.cdiv(tokens, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def _rows(base, first, tokens, stride, E: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr):
    """Rows [first, first + BLOCK) of a matrix [N, E], zero outside of it."""
    row = first + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_E)
    place = row[:, None].to(tl.int64) * stride + column[None, :]
    return tl.load(base + place, mask=(row < tokens)[:, None] & (column < E)[None, :], other=0.0)


@triton.jit
def _logits(q, k, scale, row, column, tokens, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr):
    """Logits [queries, keys] in units of log 2; -inf where a key does not count."""
    x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    live = (column < tokens)[None, :]
    if EXCLUDE:
        live = live & (row[:, None] != column[None, :])
    return tl.where(live, x, float("-inf"))


# Reads 3 and writes 1 of [B, N, H, E]; each block of queries reads all keys and values again.
@triton.jit
def _locality_attention_fwd_kernel(
    qkv_ptr, temperature_ptr,  # in:  [B, N, 3, H, E] with strides, [H] fp32
    out_ptr, stats_ptr,  # out: [B, N, H, E], [B, H, N, 2] fp32
    tokens, heads, stride_b, stride_n, stride_w, stride_h,
    E: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    index, block = _place(tokens, BLOCK_Q)
    batch = index // heads
    head = index % heads
    base = qkv_ptr + batch * stride_b + head * stride_h
    first = block * BLOCK_Q
    row = first + tl.arange(0, BLOCK_Q)
    scale = tl.load(temperature_ptr + head) * LOG2E
    q = _rows(base, first, tokens, stride_n, E, BLOCK_Q, BLOCK_E)
    largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sums = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    for begin in range(0, tokens, BLOCK_K):
        k = _rows(base + stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
        v = _rows(base + 2 * stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
        column = begin + tl.arange(0, BLOCK_K)
        x = _logits(q, k, scale, row, column, tokens, EXCLUDE, PRECISION)
        top = tl.maximum(largest, tl.max(x, 1))
        w = tl.exp2(x - top[:, None])
        fade = tl.exp2(largest - top)
        total = total * fade + tl.sum(w, 1)
        sums = sums * fade[:, None]
        sums += tl.dot(w.to(v.dtype), v, input_precision=PRECISION)
        largest = top
    inverse = 1.0 / total
    column = tl.arange(0, BLOCK_E)
    place = ((batch * tokens + row) * heads + head)[:, None] * E + column[None, :]
    live = (row < tokens)[:, None] & (column < E)[None, :]
    tl.store(out_ptr + place, sums * inverse[:, None], mask=live)
    stats = stats_ptr + (index * tokens + row) * 2
    tl.store(stats, largest, mask=row < tokens)
    tl.store(stats + 1, inverse, mask=row < tokens)


# The inner product of out and grad of each row: reads 2 of [B, N, H, E].
@triton.jit
def _locality_attention_bwd_centre_kernel(
    out_ptr, grad_ptr,  # in:  [B, N, H, E] x2
    centre_ptr,  # out: [B, H, N] fp32
    tokens, heads,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    index, block = _place(tokens, BLOCK)
    place = (index // heads * tokens * heads + index % heads) * E
    first = block * BLOCK
    out = _rows(out_ptr + place, first, tokens, heads * E, E, BLOCK, BLOCK_E).to(tl.float32)
    grad = _rows(grad_ptr + place, first, tokens, heads * E, E, BLOCK, BLOCK_E).to(tl.float32)
    row = first + tl.arange(0, BLOCK)
    tl.store(centre_ptr + index * tokens + row, tl.sum(out * grad, 1), mask=row < tokens)


@triton.jit
def _weights(
    q, k, v, grad, scale, stats_ptr, centre_ptr, row, column, tokens,
    EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights and gradients of the logits of a pair of blocks, fp32 [queries, keys]."""
    live = row < tokens
    largest = tl.load(stats_ptr + row * 2, mask=live, other=0.0)
    inverse = tl.load(stats_ptr + row * 2 + 1, mask=live, other=0.0)
    centre = tl.load(centre_ptr + row, mask=live, other=0.0)
    x = _logits(q, k, scale, row, column, tokens, EXCLUDE, PRECISION)
    w = tl.exp2(x - largest[:, None]) * inverse[:, None]
    d = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    return w, w * (d - centre[:, None])


# With fixed keys: gradients of keys and values.
@triton.jit
def _locality_attention_bwd_keys_kernel(
    grad_ptr, qkv_ptr, temperature_ptr, stats_ptr, centre_ptr,
    grad_qkv_ptr,  # out: [B, N, 3, H, E], its keys and values
    tokens, heads, stride_b, stride_n, stride_w, stride_h,
    E: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    index, block = _place(tokens, BLOCK_K)
    batch = index // heads
    head = index % heads
    base = qkv_ptr + batch * stride_b + head * stride_h
    grads = grad_ptr + (batch * tokens * heads + head) * E
    begin = block * BLOCK_K
    column = begin + tl.arange(0, BLOCK_K)
    tau = tl.load(temperature_ptr + head)
    k = _rows(base + stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
    v = _rows(base + 2 * stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
    grad_k = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    grad_v = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for first in range(0, tokens, BLOCK_Q):
        q = _rows(base, first, tokens, stride_n, E, BLOCK_Q, BLOCK_E)
        grad = _rows(grads, first, tokens, heads * E, E, BLOCK_Q, BLOCK_E)
        row = first + tl.arange(0, BLOCK_Q)
        w, d = _weights(
            q, k, v, grad, tau * LOG2E, stats_ptr + index * tokens * 2,
            centre_ptr + index * tokens, row, column, tokens, EXCLUDE, PRECISION,
        )  # fmt: skip
        grad_v += tl.dot(tl.trans(w.to(grad.dtype)), grad, input_precision=PRECISION)
        grad_k += tl.dot(tl.trans(d.to(q.dtype)), q, input_precision=PRECISION)
    e = tl.arange(0, BLOCK_E)
    place = ((batch * tokens + column) * 3 * heads + head)[:, None] * E + e[None, :]
    live = (column < tokens)[:, None] & (e < E)[None, :]
    tl.store(grad_qkv_ptr + place + heads * E, grad_k * tau, mask=live)
    tl.store(grad_qkv_ptr + place + 2 * heads * E, grad_v, mask=live)


# With fixed queries: their gradients, and a share of the temperature's.
@triton.jit
def _locality_attention_bwd_queries_kernel(
    grad_ptr, qkv_ptr, temperature_ptr, stats_ptr, centre_ptr,
    grad_qkv_ptr, partial_ptr,  # out: its queries, [B, H, blocks] fp32
    tokens, heads, stride_b, stride_n, stride_w, stride_h,
    E: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    index, block = _place(tokens, BLOCK_Q)
    batch = index // heads
    head = index % heads
    base = qkv_ptr + batch * stride_b + head * stride_h
    first = block * BLOCK_Q
    row = first + tl.arange(0, BLOCK_Q)
    tau = tl.load(temperature_ptr + head)
    q = _rows(base, first, tokens, stride_n, E, BLOCK_Q, BLOCK_E)
    grads = grad_ptr + (batch * tokens * heads + head) * E
    grad = _rows(grads, first, tokens, heads * E, E, BLOCK_Q, BLOCK_E)
    sums = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    for begin in range(0, tokens, BLOCK_K):
        k = _rows(base + stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
        v = _rows(base + 2 * stride_w, begin, tokens, stride_n, E, BLOCK_K, BLOCK_E)
        column = begin + tl.arange(0, BLOCK_K)
        _, d = _weights(
            q, k, v, grad, tau * LOG2E, stats_ptr + index * tokens * 2,
            centre_ptr + index * tokens, row, column, tokens, EXCLUDE, PRECISION,
        )  # fmt: skip
        sums += tl.dot(d.to(k.dtype), k, input_precision=PRECISION)
    e = tl.arange(0, BLOCK_E)
    place = ((batch * tokens + row) * 3 * heads + head)[:, None] * E + e[None, :]
    live = (row < tokens)[:, None] & (e < E)[None, :]
    tl.store(grad_qkv_ptr + place, sums * tau, mask=live)
    blocks = tl.cdiv(tokens, BLOCK_Q)
    tilt = tl.sum(tl.sum(sums * q.to(tl.float32), 1), 0)
    tl.store(partial_ptr + index * blocks + block, tilt)


def locality_attention(
    qkv: torch.Tensor, temperature: torch.Tensor, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward: out [B, N, H, E], stats [B, H, N, 2] fp32."""
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width)
    stats = qkv.new_empty(batch, heads, tokens, 2, dtype=torch.float32)
    if out.numel() == 0:
        return out, stats
    qkv = _dense(qkv)
    options = _options(qkv, exclude_self)
    with torch.cuda.device_of(qkv):
        _locality_attention_fwd_kernel[(triton.cdiv(tokens, options["BLOCK_Q"]) * batch * heads,)](
            *(qkv, temperature.contiguous(), out, stats),
            *(tokens, heads, *qkv.stride()[:4]),
            **options,
        )
    return out, stats


def locality_attention_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    temperature: torch.Tensor,
    out: torch.Tensor,
    stats: torch.Tensor,
    exclude_self: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the backward: gradients of qkv [B, N, 3, H, E] and of the temperature, fp32 [H]."""
    batch, tokens, _, heads, width = qkv.shape
    grad_qkv = qkv.new_empty(batch, tokens, 3, heads, width)
    if out.numel() == 0:
        return grad_qkv, torch.zeros_like(temperature)
    qkv, grad, out = _dense(qkv), grad.to(qkv.dtype).contiguous(), out.contiguous()
    stats, temperature = stats.contiguous(), temperature.contiguous()
    centre = stats.new_empty(batch, heads, tokens)
    options = _options(qkv, exclude_self)
    queries, keys = (triton.cdiv(tokens, options[f"BLOCK_{x}"]) for x in "QK")
    partial = stats.new_empty(batch, heads, queries)
    sizes = (tokens, heads, *qkv.stride()[:4])
    tensors = (grad, qkv, temperature, stats, centre, grad_qkv)
    with torch.cuda.device_of(qkv):
        _locality_attention_bwd_centre_kernel[(queries * batch * heads,)](
            *(out, grad, centre, tokens, heads),
            E=width,
            BLOCK=options["BLOCK_Q"],
            BLOCK_E=options["BLOCK_E"],
            num_warps=options["num_warps"],
        )
        _locality_attention_bwd_keys_kernel[(keys * batch * heads,)](*tensors, *sizes, **options)
        _locality_attention_bwd_queries_kernel[(queries * batch * heads,)](
            *tensors, partial, *sizes, **options
        )
    return grad_qkv, partial.sum((0, 2))


def _dense(qkv: torch.Tensor) -> torch.Tensor:
    return qkv if qkv.stride(4) == 1 else qkv.contiguous()


def _options(qkv: torch.Tensor, exclude_self: bool) -> dict[str, object]:
    tokens, width = qkv.shape[1], qkv.shape[4]
    block_e = max(16, triton.next_power_of_2(width))
    fp32 = qkv.dtype == torch.float32
    # Five tiles of [block, E] and three of [block, block] are alive in the backward; blocks of 64
    # spill in fp32, and fail to compile for compute capability 10 in bf16.
    block = 32
    tf32 = fp32 and torch.backends.cuda.matmul.allow_tf32
    return {
        "E": width,
        "EXCLUDE": exclude_self and tokens > 1,  # a lone token sees itself
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_Q": block,
        "BLOCK_K": block,
        "BLOCK_E": block_e,
        "num_warps": 8 if block_e >= 64 else 4,
    }
