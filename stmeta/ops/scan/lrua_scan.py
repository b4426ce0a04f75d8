"""A whole episode in one call: T steps of an LSTM controller with an LRUA memory (MANN).

Implementations: scan/lrua_scan in csrc/cpu, csrc/cuda and kernels/triton.

The memory, its usage and the state stay on chip from the first step to the last (in a thread's
cache, in a block's shared memory, in a program's registers); the backward repeats what was written,
from a copy of the memory every sqrt(T) steps, instead of keeping T memories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops.memory.content_addressing import EPS
from stmeta.ops.memory.lrua_step import lrua_step_ref
from stmeta.ops.scan import _lrua_scan as _lrua_scan
from stmeta.ops.scan._common import (
    check_lengths,
    check_recurrent,
    check_tensors,
    controller_step,
    rounded_linear,
    within,
)

__all__ = ["LRUAScan", "lrua_scan", "lrua_scan_ref", "lrua_scan_step_ref"]


class LRUAScan(NamedTuple):
    """What an episode gives: every step's output, and the state behind its last step."""

    y: Tensor
    """[B, T, H + R * M], output of the LSTM and what was read; zeros behind an episode's end."""
    memory: Tensor
    """[B, N, M]"""
    usage: Tensor
    """[B, N], without gradient."""
    weight: Tensor
    """[B, R, N], read weights of the last step."""
    c: Tensor
    """[B, H], cell of the LSTM."""


def lrua_scan(
    gates: Tensor,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    usage: Tensor,
    previous: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    *,
    key: Tensor | None = None,
    add: Tensor | None = None,
    lengths: Tensor | None = None,
    decay: float = 0.99,
    read_first: bool = True,
    shared: bool = False,
    strength: bool = True,
    write_key: bool = False,
    eps: float = EPS,
    backend: str = "auto",
) -> LRUAScan:
    """Run an LSTM and an LRUA memory over an episode (Santoro et al. 2016, section 3).

    Step t: gates_t + recurrent [h, reads] opens the LSTM (input, forget, cell, output); interface h
    + bias gives each head a key, a vector to write, a strength and a gate; then `lrua_step`.

    B batch, T steps, H hidden, R heads, N rows, M width, K = H + R * M or H, P = 2 M + 2 numbers of
    a head: key, vector to write, strength, gate; M + 2 with `write_key`.

    Args:
        gates: [B, T, 4 H], the part of the gates that the inputs give, for all steps; fp32 (all
            tensors; fp64 in eager).
        recurrent: [4 H, K]; with K = H the controller does not see what was read. May be bf16, as
            `interface` then is: the products with both, forward and backward, are of numbers
            rounded to bf16, with sums in fp32; all else stays fp32. On CPUs.
        interface: [R * P, H], dtype of `recurrent`.
        bias: [R * P].
        memory: [B, N, M], before the first step, as the five below.
        usage: [B, N]; no gradient goes through it.
        previous: [B, R, N] read weights.
        reads: [B, R * M].
        h: [B, H].
        c: [B, H].
        key: [B, T, R, M], added to the keys.
        add: [B, T, R, M], added to the vectors to write.
        lengths: int64 [B], steps of each episode, 0 ... T; None = T. The state stays as it was
            after an episode's last step; inputs behind it must be finite. On a GPU, where a check
            would wait for the device, lengths out of range count as the nearest in it.
        decay: how slowly usage fades, gamma in eq. 4.
        read_first: read the memory as it was before the step's write.
        shared: every head writes to all R least used rows, not head r to the r-th of them.
        strength: sharpen the read weights by 1 + 10 softplus of the head's number.
        write_key: write the key (eq. 8).
        eps: added to the norms of the cosine.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Raises:
        ValueError: shapes, dtypes or devices disagree, R > N, or a length is not in 0 ... T.
        BackendUnavailableError: the named backend cannot run here.
    """
    letters = {
        "memory": (memory, "B N M"),
        "usage": (usage, "B N"),
        "previous": (previous, "B R N"),
        "reads": (reads, "B RM"),
        "h": (h, "B H"),
        "c": (c, "B H"),
        "gates": (gates, "B T 4H"),
        "recurrent": (recurrent, "4H K"),
        "interface": (interface, "RP H"),
        "bias": (bias, "RP"),
        "key": (key, "B T R M"),
        "add": (add, "B T R M"),
    }
    check_tensors("lrua_scan", memory, letters, rounded=("recurrent", "interface"))
    heads, width = previous.shape[1], memory.shape[2]
    check_recurrent("lrua_scan", recurrent, c.shape[1], heads * width)
    _check_interface(interface, heads, width, c.shape[1], write_key)
    check_lengths("lrua_scan", lengths, gates)
    if heads > memory.shape[1]:
        raise ValueError(
            f"lrua_scan: there must be at least as many rows N as heads R = {heads}, "
            f"got {memory.shape[1]}"
        )
    tensors = (gates, key, add, recurrent, interface, bias)
    tensors += (memory, usage.detach(), previous, reads, h, c, lengths)
    options = (decay, read_first, shared, strength, write_key, eps)
    sizes = {"H": heads, "bf16": recurrent.dtype == torch.bfloat16}
    sizes |= zip("BNM", memory.shape, strict=True)
    name = resolve("lrua_scan", memory, backend, sizes)
    if name == "eager" or gates.shape[1] == 0:
        return lrua_scan_ref(*tensors, *options)
    return LRUAScan(*run("lrua_scan", name, *tensors, *options)[:5])


def lrua_scan_ref(
    gates: Tensor,
    key: Tensor | None,
    add: Tensor | None,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    usage: Tensor,
    previous: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    decay: float,
    read_first: bool,
    shared: bool,
    strength: bool,
    write_key: bool,
    eps: float,
    step: Callable[..., tuple[Tensor, ...]] | None = None,
) -> LRUAScan:
    """`lrua_scan` in plain PyTorch, step by step; `step` is a compiled `lrua_scan_step_ref`."""
    step = step or lrua_scan_step_ref
    gates = within(gates, lengths)
    key, add = (None if x is None else within(x, lengths) for x in (key, add))
    state = (memory, usage, previous, reads, h, c)
    steps, width = gates.shape[1], reads.shape[1]
    # unbind, not indexing: the backward of x[:, t] would fill a zero tensor of all steps each time.
    keys = [None] * steps if key is None else key.unbind(1)
    adds = [None] * steps if add is None else add.unbind(1)
    outputs = []
    for t, now in enumerate(zip(gates.unbind(1), keys, adds, strict=True)):
        before = state
        state = step(
            *now, recurrent, interface, bias, *state,
            decay, read_first, shared, strength, write_key, eps,
        )  # fmt: skip
        now_out = (state[4], state[3])
        if lengths is not None:
            on = (t < lengths)[:, None]
            now_out = tuple(torch.where(on, x, 0) for x in now_out)
            pairs = zip(state, before, strict=True)
            state = tuple(torch.where(on if x.ndim < 3 else on[:, None], x, y) for x, y in pairs)
        outputs += now_out
    memory, usage, previous, _, _, c = state
    if not outputs:
        y = gates.new_zeros(gates.shape[0], 0, h.shape[1] + width)
        return LRUAScan(y, memory, usage, previous, c)
    y = torch.cat(outputs, 1).unflatten(1, (steps, h.shape[1] + width))
    return LRUAScan(y, memory, usage, previous, c)


def lrua_scan_step_ref(
    gates: Tensor,
    key: Tensor | None,
    add: Tensor | None,
    recurrent: Tensor,
    interface: Tensor,
    bias: Tensor,
    memory: Tensor,
    usage: Tensor,
    previous: Tensor,
    reads: Tensor,
    h: Tensor,
    c: Tensor,
    decay: float,
    read_first: bool,
    shared: bool,
    strength: bool,
    write_key: bool,
    eps: float,
) -> tuple[Tensor, ...]:
    """One step of `lrua_scan_ref`: the six tensors of the state."""
    heads, width = previous.shape[1], memory.shape[2]
    h, c = controller_step(gates, recurrent, reads, h, c)
    numbers = (1 if write_key else 2) * width + 2
    parts = rounded_linear(h, interface, bias).unflatten(1, (heads, numbers))
    k = parts[..., :width] if key is None else parts[..., :width] + key
    a = k if write_key else parts[..., width : 2 * width]
    a = a if add is None else a + add
    beta = 1 + 10 * F.softplus(parts[..., -2]) if strength else torch.ones_like(parts[..., 0])
    done = lrua_step_ref(
        *(memory, usage, previous, k, beta, torch.sigmoid(parts[..., -1]), a),
        decay=decay, read_first=read_first, shared=shared, eps=eps,
    )  # fmt: skip
    return done.memory, done.usage, done.weight, done.read.flatten(1), h, c


def _check_interface(
    interface: Tensor, heads: int, width: int, hidden: int, write_key: bool
) -> None:
    per_head = (1 if write_key else 2) * width + 2
    if interface.shape[0] != heads * per_head:
        raise ValueError(
            f"lrua_scan: interface must be [R * P, H] = [{heads * per_head}, {hidden}] with "
            f"P = {per_head} numbers of a head (write_key = {write_key}), got "
            f"{list(interface.shape)}"
        )
