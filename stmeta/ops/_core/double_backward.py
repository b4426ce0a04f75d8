"""Derivatives of derivatives: what an op computed, once more in eager, from what it kept.

A kernel's backward has no derivative. Where one is asked for (`create_graph=True`), or where the
gradients carry a tangent or a hidden axis, the backward is that of the eager reference. What the
op has not kept it is linear in, so zeros stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# What an op computes of its first arguments, and these: as kept, or zeros.
Recomputed = tuple[Callable[..., Any], Sequence[Any]]
Recompute = Callable[[Any, Sequence[Tensor]], Recomputed]  # of (ctx, gradients of the results)

formulas: dict[str, Recompute] = {}  # op -> its own; `register` fills it


def zeros(grad: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """One zero in this shape: it takes no memory."""
    return torch.zeros((), dtype=dtype or grad.dtype, device=grad.device).expand(shape)


def from_saved(reference: Callable[..., Any], count: int) -> Recompute:
    """Of an op that keeps its first `count` arguments first and has no options."""
    return lambda ctx, grads: (reference, ctx.saved_tensors[:count])


def by_eager(op: str, ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients of all arguments, which have derivatives themselves."""
    function, inputs = formulas[op](ctx, grads)
    recorded = torch.is_grad_enabled()
    needs = ctx.needs_input_grad
    with torch.enable_grad():
        # Aliases, as one argument may come from another: each gets what is its own.
        leaves = [
            (x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_())
            if need
            else x
            for x, need in zip(inputs, needs, strict=False)
        ]
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = [
            (x, grad)
            for x, grad in zip(outputs, grads, strict=False)
            if x.requires_grad and grad is not None
        ]
        wanted = [x for x, need in zip(leaves, needs, strict=False) if need]
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=recorded,
            allow_unused=True,
        )
    gradients = iter(found)
    return tuple(next(gradients) if need else None for need in needs)
