"""A whole sequence in one call: T steps of an LSTM controller with an NTM memory.

Implementations: scan/ntm_scan in csrc/cpu, csrc/cuda and kernels/triton.

The memory and the state stay on chip from the first step to the last (in a thread's cache, in a
block's shared memory, in a program's registers); the backward repeats what was erased and added,
from a copy of the memory every sqrt(T) steps, instead of keeping T memories.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.flops import of_controller
from stmeta.ops._core.register import register
from stmeta.ops.memory.content_addressing import EPS
from stmeta.ops.memory.location_addressing import check_taps
from stmeta.ops.memory.ntm_step import ntm_step_ref
from stmeta.ops.scan._common import (
    LIMITS,
    check_lengths,
    check_recurrent,
    check_tensors,
    controller_step,
    num_checkpoints,
    within,
)

__all__ = ["NTMScan", "ntm_scan", "ntm_scan_ref", "ntm_scan_step_ref"]


class NTMScan(NamedTuple):
    """What a sequence gives: every step's output, and the state behind its last step."""

    y: Tensor
    """[B, T, H + R * M], output of the LSTM and what was read; zeros behind a sequence's end."""
    memory: Tensor
    """[B, N, M]"""
    weights: Tensor
    """[B, R + W, N], where each head step_weights at the last step."""
    c: Tensor
    """[B, H], cell of the LSTM."""


def ntm_scan(
    gates: Tensor,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    weights: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    *,
    lengths: Tensor | None = None,
    taps: int = 3,
    read_first: bool = True,
    tanh_key: bool = False,
    tanh_add: bool = False,
    eps: float = EPS,
    backend: str = "auto",
) -> NTMScan:
    """Run an LSTM and an NTM memory over a sequence (Graves et al. 2014, section 3).

    Step t: gates_t + recurrent [h, reads] opens the LSTM (input, forget, cell, output); interface h
    + bias gives the heads their numbers; then `ntm_step`.

    B batch, T steps, H hidden, R heads that read, W heads that write, N rows, M width, S taps,
    K = H + R * M or H, P = (R + W) (M + 3 + S) + 2 W M numbers of all heads: for each head, first
    the R, its key, strength, sharpness, gate and S shifts; then the erase vectors of the W, then
    what they add. Strength = softplus, sharpness = 1 + softplus, gate and erase = sigmoid, shifts =
    softmax of these numbers.

    Args:
        gates: [B, T, 4 H], the part of the gates that the inputs give, for all steps; fp32 (all
            tensors; fp64 in eager).
        recurrent: [4 H, K]; with K = H the controller does not see what was read.
        interface: [P, H].
        bias: [P].
        memory: [B, N, M], before the first step, as the four below.
        weights: [B, R + W, N].
        reads: [B, R * M].
        h: [B, H].
        c: [B, H].
        lengths: int64 [B], steps of each sequence, 0 ... T; None = T. The state stays as it was
            after a sequence's last step; inputs behind it must be finite.
        taps: S, odd and at most N: shifts by -(S // 2) ... S // 2.
        read_first: read the memory as it was before the step's write.
        tanh_key: bound the keys by tanh.
        tanh_add: bound what is added by tanh.
        eps: added to the norms of the cosine.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Raises:
        ValueError: shapes, dtypes or devices disagree, S is even or above N, R or W is below 1, or
            a length is not in 0 ... T.
        BackendUnavailableError: the named backend cannot run here.
    """
    tensors = (gates, recurrent, interface, bias, memory, weights, reads, h, c)
    letters = ("B T 4H", "4H K", "P H", "P", "B N M", "B R+W N", "B RM", "B H", "B H")
    names = ("gates", "recurrent", "interface", "bias", "memory", "weights", "reads", "h", "c")
    pairs = zip(tensors, letters, strict=True)
    check_tensors("ntm_scan", memory, dict(zip(names, pairs, strict=True)))
    if taps < 1:
        raise ValueError(f"ntm_scan: taps must be at least 1, got {taps}")
    check_taps("ntm_scan", taps, memory.shape[1])
    _check_heads(interface, weights, memory.shape[2], reads.shape[1], taps)
    check_recurrent("ntm_scan", recurrent, h.shape[1], reads.shape[1])
    check_lengths("ntm_scan", lengths, gates)
    options = (taps, read_first, tanh_key, tanh_add, eps)
    sizes = {"H": weights.shape[1], **dict(zip("BNM", memory.shape, strict=True))}
    name = resolve("ntm_scan", memory, backend, sizes)
    if name == "eager" or gates.shape[1] == 0:
        return ntm_scan_ref(*tensors, lengths, *options)
    return NTMScan(*run("ntm_scan", name, *tensors, lengths, *options)[:4])


def ntm_scan_ref(
    gates: Tensor,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    weights: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    taps: int,
    read_first: bool,
    tanh_key: bool,
    tanh_add: bool,
    eps: float,
    step: Callable[..., tuple[Tensor, ...]] | None = None,
) -> NTMScan:
    """`ntm_scan` in plain PyTorch, step by step; `step` is a compiled `ntm_scan_step_ref`."""
    step = step or ntm_scan_step_ref
    gates = within(gates, lengths)
    state = (memory, weights, reads, h, c)
    shape = (gates.shape[1], h.shape[1] + reads.shape[1])
    outputs = []
    # unbind, not indexing: the backward of x[:, t] would fill a zero tensor of all steps each time.
    for t, now in enumerate(gates.unbind(1)):
        before = state
        state = step(
            *(now, recurrent, interface, bias, *state),
            *(taps, read_first, tanh_key, tanh_add, eps),
        )
        now_out = (state[3], state[2])
        if lengths is not None:
            on = (t < lengths)[:, None]
            now_out = tuple(torch.where(on, x, 0) for x in now_out)
            pairs = zip(state, before, strict=True)
            state = tuple(torch.where(on if x.ndim < 3 else on[:, None], x, y) for x, y in pairs)
        outputs += now_out
    memory, weights, _, _, c = state
    y = torch.cat(outputs, 1) if outputs else gates.new_zeros(gates.shape[0], 0)
    return NTMScan(y.view(gates.shape[0], *shape), memory, weights, c)


def ntm_scan_step_ref(
    gates: Tensor,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    weights: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    taps: int,
    read_first: bool,
    tanh_key: bool,
    tanh_add: bool,
    eps: float,
) -> tuple[Tensor, ...]:
    """One step of `ntm_scan_ref`: the five tensors of the state."""
    heads, width = weights.shape[1], memory.shape[2]
    reading = reads.shape[1] // width
    h, c = controller_step(gates, recurrent, reads, h, c)
    out = F.linear(h, interface, bias)
    addressing = out[:, : heads * (width + 3 + taps)].unflatten(1, (heads, -1))
    writing = out[:, heads * (width + 3 + taps) :].unflatten(1, (2, heads - reading, width))
    key, positive, gate, shift = addressing.split([width, 2, 1, taps], dim=2)
    strength, sharpen = F.softplus(positive).unbind(2)
    erase, add = writing.unbind(1)
    done = ntm_step_ref(
        memory,
        weights,
        torch.tanh(key) if tanh_key else key,
        strength,
        torch.sigmoid(gate[:, :, 0]),
        torch.softmax(shift, dim=2),
        1 + sharpen,
        torch.sigmoid(erase),
        torch.tanh(add) if tanh_add else add,
        reads=reading,
        read_first=read_first,
        eps=eps,
    )
    return done.memory, done.weight, done.read.flatten(1), h, c


def _check_heads(interface: Tensor, weights: Tensor, width: int, read: int, taps: int) -> None:
    heads, hidden = weights.shape[1], interface.shape[1]
    reading = read // max(width, 1)
    if reading * width != read or not 1 <= reading < heads:
        raise ValueError(
            f"ntm_scan: reads must be [B, R * M] with M = {width} and 1 <= R < R + W = {heads}, "
            f"got {read} numbers; the first R heads read, the last W write"
        )
    numbers = heads * (width + 3 + taps) + 2 * (heads - reading) * width
    if interface.shape[0] != numbers:
        raise ValueError(
            f"ntm_scan: interface must be [P, H] = [{numbers}, {hidden}] with P = (R + W) "
            f"(M + 3 + S) + 2 W M and S = {taps} taps, got {list(interface.shape)}"
        )


_OPTIONS = "int taps, bool read_first, bool tanh_key, bool tanh_add, float eps"
_KEPT = "Tensor activated, Tensor cells, Tensor heads, Tensor step_weights, Tensor checkpoints"
_SCHEMA = (
    "(Tensor gates, Tensor recurrent, Tensor interface, Tensor bias, Tensor memory, "
    f"Tensor weights, Tensor reads, Tensor h, Tensor c, Tensor? lengths, {_OPTIONS}) "
    f"-> (Tensor y, Tensor memory_out, Tensor weights_out, Tensor c_out, {_KEPT})"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_y, Tensor grad_memory, Tensor grad_weights, Tensor grad_c, Tensor recurrent, "
    f"Tensor interface, Tensor weights, Tensor c, Tensor? lengths, {_KEPT}, {_OPTIONS}) "
    "-> (Tensor d_gates, Tensor d_heads, Tensor d_memory, Tensor d_weights, Tensor d_reads, "
    "Tensor d_h, Tensor d_c)"
)


def _fake(
    gates: Tensor, recurrent: Tensor, interface: Tensor, bias: Tensor, memory: Tensor,
    weights: Tensor, reads: Tensor, h: Tensor, c: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    (batch, steps), new = gates.shape[:2], gates.new_empty
    return (
        new(batch, steps, h.shape[1] + reads.shape[1]),
        *(x.new_empty(x.shape) for x in (memory, weights, c, gates)),
        new(batch, steps, h.shape[1]),
        new(batch, steps, interface.shape[0]),
        new(batch, steps, *weights.shape[1:]),
        new(batch, num_checkpoints(steps), *memory.shape[1:]),
    )


def _backward_fake(
    grad_y: Tensor, grad_memory: Tensor, grad_weights: Tensor, grad_c: Tensor, recurrent: Tensor,
    interface: Tensor, weights: Tensor, c: Tensor, lengths: Any, activated: Tensor, cells: Tensor,
    heads: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    reads = grad_y.new_empty(grad_y.shape[0], grad_y.shape[2] - c.shape[1])
    like = (activated, heads, grad_memory, weights, reads, c, c)
    return tuple(x.new_empty(x.shape) for x in like)


class _Saved(NamedTuple):
    """What the backward takes: first what it takes as it is."""

    recurrent: Tensor
    interface: Tensor
    weights: Tensor
    c: Tensor
    lengths: Tensor | None
    activated: Tensor
    cells: Tensor
    heads: Tensor
    step_weights: Tensor
    checkpoints: Tensor
    reads: Tensor
    h: Tensor
    y: Tensor

    def taken(self) -> tuple[Any, ...]:
        """What the backward op takes."""
        return self[: self._fields.index("reads")]


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, out = inputs, output
        ctx.options = (x.taps, x.read_first, x.tanh_key, x.tanh_add, x.eps)
        kept = (out.activated, out.cells, out.heads, out.step_weights, out.checkpoints)
        given = (x.recurrent, x.interface, x.weights, x.c, x.lengths)
        ctx.save_for_backward(*_Saved(*given, *kept, x.reads, x.h, out.y))
        ctx.mark_non_differentiable(*kept)

    def backward(
        ctx: Any, y: Tensor, memory: Tensor, weights: Tensor, c: Tensor, *_: Any
    ) -> tuple[Tensor | None, ...]:
        x = _Saved(*ctx.saved_tensors)
        d_gates, d_heads, *d_state = ops.ntm_scan_backward(
            y, memory, weights, c, *x.taken(), *ctx.options
        )
        first = torch.cat([x.h, x.reads], 1)[:, None]
        given = torch.cat([first, x.y[:, :-1]], 1)[..., : x.recurrent.shape[1]].flatten(0, 1)
        h_out = x.y[..., : x.h.shape[1]].flatten(0, 1)
        of_heads = d_heads.flatten(0, 1)
        of_weights = (d_gates.flatten(0, 1).t() @ given, of_heads.t() @ h_out, of_heads.sum(0))
        return d_gates, *of_weights, *d_state, *[None] * 6

    return setup_context, backward


def _flops(x: Any, out: Any) -> int:
    """At each step R + W heads compare, W write, R read."""
    steps = 4 * x.gates[1] * prod(x.memory) * x.weights[1]
    return of_controller(x, x.gates) + steps


def _backward_flops(x: Any, out: Any) -> int:
    """Without the gradients of the weights, which are products of torch."""
    steps = 8 * x.activated[1] * prod(x.grad_memory) * x.weights[1]
    return of_controller(x, x.activated) + steps


register(
    "ntm_scan", _SCHEMA, _fake, module=__name__, autograd=_autograd, limits=LIMITS, flops=_flops
)
register(
    "ntm_scan_backward", _BACKWARD_SCHEMA, _backward_fake, module=__name__, flops=_backward_flops
)
