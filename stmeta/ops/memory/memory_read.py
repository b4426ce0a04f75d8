"""Reads from a memory: weighted sums of its rows.

Implementations: memory/memory_read in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import from_saved
from stmeta.ops._core.flops import of_heads
from stmeta.ops._core.limits import of_memory
from stmeta.ops._core.register import register

__all__ = ["memory_read", "memory_read_ref"]


def memory_read(memory: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """Read from a memory: r = sum over rows of w_n M_n (Graves et al. 2014, eq. 2).

    Args:
        memory: [B, N, M]; fp32, bf16 or fp16 (fp64 in eager).
        weight: [B, H, N] read weights, one row per head.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        What each head reads, [B, H, M], dtype of `memory`. Accumulation is fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes("memory_read", memory=(memory, "B N M"), weight=(weight, "B H N"))
    arguments = same_dtype("memory_read", "memory", memory, weight)
    name = resolve("memory_read", memory, backend, sizes)
    if name == "eager":
        return memory_read_ref(*arguments)
    return run("memory_read", name, *arguments)


def memory_read_ref(memory: Tensor, weight: Tensor) -> Tensor:
    """`memory_read` in plain PyTorch."""
    return weight @ memory


_SCHEMA = "(Tensor memory, Tensor weight) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor memory, Tensor weight) -> (Tensor grad_memory, Tensor grad_weight)"
)


def _fake(memory: Tensor, weight: Tensor) -> Tensor:
    return memory.new_empty(*weight.shape[:2], memory.shape[2])


def _backward_fake(grad: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return memory.new_empty(memory.shape), weight.new_empty(weight.shape)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return ops.memory_read_backward(grad, *ctx.saved_tensors)

    return setup_context, backward


register(
    "memory_read",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=from_saved(memory_read_ref, 2),
    limits=of_memory("H"),
    flops=lambda x, out: of_heads(x.memory, x.weight),
)
register(
    "memory_read_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 2 * of_heads(x.memory, x.weight),
)
