"""Looks up memory rows by likeness to a key.

Implementations: memory/content_addressing in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.flops import of_heads
from stmeta.ops._core.limits import of_memory
from stmeta.ops._core.register import register

__all__ = ["content_addressing", "content_addressing_ref"]

EPS = 1e-6


def content_addressing(
    memory: Tensor, key: Tensor, strength: Tensor, *, eps: float = EPS, backend: str = "auto"
) -> Tensor:
    """Weights by content: softmax over rows of strength * cosine (Graves et al. 2014, eq. 5-6).

    Args:
        memory: [B, N, M]; fp32, bf16 or fp16 (fp64 in eager).
        key: [B, H, M], one row per head.
        strength: [B, H], the key strength beta, at least 0.
        eps: added to both norms of the cosine; an empty row has cosine 0.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        Weights [B, H, N], dtype of `memory`; each row sums to 1.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "content_addressing",
        memory=(memory, "B N M"),
        key=(key, "B H M"),
        strength=(strength, "B H"),
    )
    arguments = same_dtype("content_addressing", "memory", memory, key, strength)
    name = resolve("content_addressing", memory, backend, sizes)
    if name == "eager":
        return content_addressing_ref(*arguments, eps=eps)
    return run("content_addressing", name, *arguments, eps)


def content_addressing_ref(
    memory: Tensor, key: Tensor, strength: Tensor, *, eps: float = EPS
) -> Tensor:
    """`content_addressing` in plain PyTorch, the fastest that we found."""
    # Scaling the keys and the scores is cheaper than a normalised copy of the memory.
    scale = strength / (torch.linalg.vector_norm(key, dim=-1) + eps)
    rows = 1 / (torch.linalg.vector_norm(memory, dim=-1) + eps)
    scores = (key * scale[:, :, None]) @ memory.transpose(1, 2)
    return torch.softmax(scores * rows[:, None], dim=-1)


_SCHEMA = "(Tensor memory, Tensor key, Tensor strength, float eps) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor memory, Tensor key, Tensor strength, Tensor weight, float eps) "
    "-> (Tensor grad_memory, Tensor grad_key, Tensor grad_strength)"
)


def _fake(memory: Tensor, key: Tensor, strength: Tensor, eps: float) -> Tensor:
    return memory.new_empty(*key.shape[:2], memory.shape[1])


def _backward_fake(
    grad: Tensor, memory: Tensor, key: Tensor, strength: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (memory, key, strength))


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ops.content_addressing_backward(grad, *ctx.saved_tensors, ctx.eps), None

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    eps = ctx.eps
    return lambda *x: content_addressing_ref(*x, eps=eps), ctx.saved_tensors[:3]


register(
    "content_addressing",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=of_memory("H"),
    flops=lambda x, out: of_heads(x.memory, x.key),
)
register(
    "content_addressing_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 2 * of_heads(x.memory, x.key),
)
