"""One step of MANN's memory: least recently used access, write and read in one pass.

Implementations: memory/lrua_step in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.flops import of_heads
from stmeta.ops._core.limits import Limits, joined, of_memory, some_heads
from stmeta.ops._core.register import register
from stmeta.ops.memory.content_addressing import EPS, content_addressing_ref

__all__ = ["LRUAStep", "lrua_step", "lrua_step_ref"]


class LRUAStep(NamedTuple):
    """What one step of MANN's memory gives."""

    memory: Tensor
    """[B, N, M], after the write."""
    usage: Tensor
    """[B, N], after this step; without gradient."""
    weight: Tensor
    """[B, R, N], read weights; the `previous` of the next step."""
    read: Tensor
    """[B, R, M]"""
    rows: Tensor
    """int64 [B, R], the rows that were least used before this step, least first."""


def lrua_step(
    memory: Tensor,
    usage: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    add: Tensor,
    *,
    decay: float = 0.99,
    read_first: bool = True,
    shared: bool = False,
    eps: float = EPS,
    backend: str = "auto",
) -> LRUAStep:
    """Write to what was read last or to the least used rows; read (Santoro et al. 2016, eq. 2-8).

    Per head r: write weights = gate * previous + (1 - gate) * least, with `least` 1 at the least
    used row; the least used rows are cleared, then each head adds its vector; read weights =
    softmax(strength * cosine); usage = decay * usage + read weights + write weights.

    Args:
        memory: [B, N, M]; fp32, bf16 or fp16 (fp64 in eager).
        usage: [B, N], how much each row was used of late; no gradient passes through it.
        previous: [B, R, N] read weights of the last step.
        key: [B, R, M].
        strength: [B, R], at least 0; ones give the paper's plain cosine.
        gate: [B, R] in [0, 1], the paper's sigmoid(alpha).
        add: [B, R, M], what is written; the paper writes the key.
        decay: the paper's gamma.
        read_first: read the memory as it was before the write.
        shared: every head writes to all R least used rows, not head r to the r-th of them.
        eps: added to the norms of the cosine.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Raises:
        ValueError: shapes, dtypes or devices disagree, or R > N.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "lrua_step",
        memory=(memory, "B N M"),
        usage=(usage, "B N"),
        previous=(previous, "B R N"),
        key=(key, "B R M"),
        strength=(strength, "B R"),
        gate=(gate, "B R"),
        add=(add, "B R M"),
    )
    if sizes["R"] > sizes["N"]:
        raise ValueError(
            f"lrua_step: there must be at least as many rows N as heads R = {sizes['R']}, "
            f"got {sizes['N']}"
        )
    arguments = same_dtype(
        "lrua_step", "memory", memory, usage.detach(), previous, key, strength, gate, add
    )
    name = resolve("lrua_step", memory, backend, sizes)
    if name == "eager":
        return lrua_step_ref(*arguments, decay=decay, read_first=read_first, shared=shared, eps=eps)
    return LRUAStep(*run("lrua_step", name, *arguments, decay, read_first, shared, eps))


def lrua_step_ref(
    memory: Tensor,
    usage: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    add: Tensor,
    *,
    decay: float = 0.99,
    read_first: bool = True,
    shared: bool = False,
    eps: float = EPS,
) -> LRUAStep:
    """`lrua_step` in plain PyTorch, the fastest that we found."""
    rows = usage.sort(dim=1, stable=True).indices[:, : key.shape[1]]  # the lower row on a tie
    erased = torch.zeros_like(usage).scatter(1, rows, 1.0)
    if shared:
        least = erased[:, None].expand_as(previous)
    else:
        least = torch.zeros_like(previous).scatter(2, rows[:, :, None], 1.0)
    write = torch.lerp(least, previous, gate[:, :, None])
    written = torch.baddbmm(memory * (1 - erased)[:, :, None], write.transpose(1, 2), add)
    source = memory if read_first else written
    weight = content_addressing_ref(source, key, strength, eps=eps)
    # Detached twice: `no_grad` alone lets tangents through, `detach` alone records the sum.
    with torch.no_grad():
        new_usage = torch.add((weight + write).sum(1), usage, alpha=decay).detach()
    return LRUAStep(written, new_usage, weight, weight @ source, rows)


_SCHEMA = (
    "(Tensor memory, Tensor usage, Tensor previous, Tensor key, Tensor strength, Tensor gate, "
    "Tensor add, float decay, bool read_first, bool shared, float eps) "
    "-> (Tensor memory_out, Tensor usage_out, Tensor weight, Tensor read, Tensor rows)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_memory, Tensor grad_weight, Tensor grad_read, Tensor memory, Tensor previous, "
    "Tensor key, Tensor strength, Tensor gate, Tensor add, Tensor weight, Tensor rows, "
    "bool read_first, bool shared, float eps) "
    "-> (Tensor d_memory, Tensor d_previous, Tensor d_key, Tensor d_strength, Tensor d_gate, "
    "Tensor d_add)"
)


def _fake(
    memory: Tensor, usage: Tensor, previous: Tensor, key: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    rows = memory.new_empty(key.shape[:2], dtype=torch.int64)
    return *(x.new_empty(x.shape) for x in (memory, usage, previous, key)), rows


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[3:9])


class _Saved(NamedTuple):
    memory: Tensor
    previous: Tensor
    key: Tensor
    strength: Tensor
    gate: Tensor
    add: Tensor
    weight: Tensor
    rows: Tensor


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x = inputs
        ctx.options = (x.read_first, x.shared, x.eps)
        saved = (x.memory, x.previous, x.key, x.strength, x.gate, x.add)
        ctx.save_for_backward(*saved, output.weight, output.rows)
        ctx.mark_non_differentiable(output.usage_out, output.rows)

    def backward(
        ctx: Any, memory: Tensor, usage: Tensor, weight: Tensor, read: Tensor, rows: Tensor
    ) -> tuple[Tensor | None, ...]:
        d = ops.lrua_step_backward(memory, weight, read, *ctx.saved_tensors, *ctx.options)
        d_memory, *others = d
        return d_memory, None, *others, *[None] * 4

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    x = _Saved(*ctx.saved_tensors)
    read_first, shared, eps = ctx.options
    # Any usage with the same least used rows, least first.
    order = torch.arange(x.rows.shape[1], device=x.rows.device).expand_as(x.rows) - x.rows.shape[1]
    usage = x.memory.new_zeros(x.memory.shape[:2])
    usage = usage.scatter(1, x.rows, order.to(x.memory.dtype))

    def step(*tensors: Tensor) -> Any:
        return lrua_step_ref(*tensors, read_first=read_first, shared=shared, eps=eps)

    return step, (x.memory, usage, x.previous, x.key, x.strength, x.gate, x.add)


_SOME_HEADS: Limits = dict.fromkeys(("cpu", "cuda"), (some_heads("R"),))


register(
    "lrua_step",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=joined(of_memory("R"), _SOME_HEADS),
    flops=lambda x, out: 3 * of_heads(x.memory, x.previous),
)
register(
    "lrua_step_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 6 * of_heads(x.memory, x.previous),
)
