"""Writes to an NTM memory: erase, then add.

Implementations: memory/erase_add in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import from_saved
from stmeta.ops._core.flops import of_heads
from stmeta.ops._core.limits import of_memory
from stmeta.ops._core.register import register

__all__ = ["erase_add", "erase_add_ref"]


def erase_add(
    memory: Tensor, weight: Tensor, erase: Tensor, add: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Write to NTM memory: blurry erase, then add (Graves et al. 2014, eq. 3-4).

    With several heads the erasures multiply and the additions sum up, so their order is free.

    Args:
        memory: [B, N, M]; fp32, bf16 or fp16 (fp64 in eager).
        weight: [B, W, N] write weights, one row per head; rows sum to at most 1.
        erase: [B, W, M] in [0, 1].
        add: [B, W, M].
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        The new memory, [B, N, M], dtype of `memory`. Accumulation is fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "erase_add",
        memory=(memory, "B N M"),
        weight=(weight, "B W N"),
        erase=(erase, "B W M"),
        add=(add, "B W M"),
    )
    arguments = same_dtype("erase_add", "memory", memory, weight, erase, add)
    name = resolve("erase_add", memory, backend, sizes)
    if name == "eager":
        return erase_add_ref(*arguments)
    return run("erase_add", name, *arguments)


def erase_add_ref(memory: Tensor, weight: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """`erase_add` in plain PyTorch, the fastest that we found."""
    kept = memory
    for w, e in zip(weight.unbind(1), erase.unbind(1), strict=True):
        kept = torch.addcmul(kept, kept, w[:, :, None] * e[:, None], value=-1)
    return torch.baddbmm(kept, weight.transpose(1, 2), add)


_SCHEMA = "(Tensor memory, Tensor weight, Tensor erase, Tensor add) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor memory, Tensor weight, Tensor erase, Tensor add) "
    "-> (Tensor grad_memory, Tensor grad_weight, Tensor grad_erase, Tensor grad_add)"
)


def _fake(memory: Tensor, *rest: Tensor) -> Tensor:
    return memory.new_empty(memory.shape)


def _backward_fake(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return ops.erase_add_backward(grad, *ctx.saved_tensors)

    return setup_context, backward


register(
    "erase_add",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=from_saved(erase_add_ref, 4),
    limits=of_memory("W"),
    flops=lambda x, out: of_heads(x.memory, x.weight),
)
register(
    "erase_add_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 2 * of_heads(x.memory, x.weight),
)
