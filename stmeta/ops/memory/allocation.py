"""Weights over the free rows of a memory.

Implementations: memory/allocation in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import from_saved
from stmeta.ops._core.limits import at_most
from stmeta.ops._core.register import register

__all__ = ["allocation", "allocation_ref"]


def allocation(usage: Tensor, *, backend: str = "auto") -> Tensor:
    """Weights over free rows (Graves et al. 2016, Methods, eq. 1 of "Dynamic memory allocation").

    a[phi_j] = (1 - u[phi_j]) * prod_{i < j} u[phi_i], where phi sorts the rows by usage, least
    used first. Of rows used alike, the lower index comes first.

    Exact at u = 0 and u = 1, in values and in gradients, so no epsilon is added to the usage: a
    sum of logarithms would be infinite at 0, and a quotient of products 0 / 0. Gradients pass
    through the values of the usage, not through its order.

    A row of the batch is sorted in one block of a GPU, in shared memory where it fits: from 8,192
    rows on, or 16,384, by the GPU, the CUDA backend sorts in main memory, slowly. With more than
    2,048 the Triton backend has torch sort.

    Args:
        usage: [B, N] in [0, 1]; fp32, bf16 or fp16 (fp64 in eager).
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        [B, N], dtype of `usage`; rows sum to 1 - prod(u), at most 1. Products are fp64.

    Raises:
        ValueError: usage is not [B, N], or not floating.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes("allocation", usage=(usage, "B N"))
    (usage,) = same_dtype("allocation", "usage", usage)
    name = resolve("allocation", usage, backend, sizes)
    if name == "eager":
        return allocation_ref(usage)
    return run("allocation", name, usage)[0]


def allocation_ref(usage: Tensor) -> Tensor:
    """`allocation` in plain PyTorch."""
    ordered, order = torch.sort(usage, dim=1, stable=True)
    # prod_{i < j}: the product up to j, moved on by one. Its backward looks for zeros and so
    # waits for the device; that is eager PyTorch's price for exact gradients at u = 0.
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1].cumprod(1)], dim=1)
    return torch.zeros_like(usage).scatter(1, order, (1 - ordered) * before)


_SCHEMA = "(Tensor usage) -> (Tensor allocation, Tensor order)"  # order: int32 [B, N], phi
_BACKWARD_SCHEMA = "(Tensor grad, Tensor usage, Tensor order) -> Tensor"


def _fake(usage: Tensor) -> tuple[Tensor, Tensor]:
    return usage.new_empty(usage.shape), usage.new_empty(usage.shape, dtype=torch.int32)


def _backward_fake(grad: Tensor, usage: Tensor, order: Tensor) -> Tensor:
    return usage.new_empty(usage.shape)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    def backward(ctx: Any, grad: Tensor, _: Any) -> Tensor:
        return ops.allocation_backward(grad, *ctx.saved_tensors)

    return setup_context, backward


register(
    "allocation",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=from_saved(allocation_ref, 1),
    limits={"cuda": (at_most(2**29, "rows N", "N"), at_most(2**31 - 1, "elements B", "B"))},
)
register(
    "allocation_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
