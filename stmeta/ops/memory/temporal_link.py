"""Remembers in which order the rows of a memory were written.

Implementations: memory/temporal_link in csrc/cpu, csrc/cuda and kernels/triton.
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

__all__ = ["temporal_link", "temporal_link_ref"]


def temporal_link(
    link: Tensor, precedence: Tensor, write_weight: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Remember which row was written after which (Graves et al. 2016, "Temporal memory linkage").

    Per write head, with write weights w and the precedence p of the step before:

        L[i, j] = (1 - w[i] - w[j]) * L[i, j] + w[i] * p[j],  L[i, i] = 0
        p       = (1 - sum(w)) * p + w

    L[i, j] near 1 says that row i was written right after row j. Where rows and columns of L and
    the sums of p and w are at most 1, they stay so.

    Args:
        link: [B, W, N, N] with a diagonal of zeros; fp32, bf16 or fp16 (fp64 in eager).
        precedence: [B, W, N].
        write_weight: [B, W, N], sums at most 1.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        The new link [B, W, N, N] and precedence [B, W, N], dtype of `link`. Accumulation is fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "temporal_link",
        link=(link, "B W N N"),
        precedence=(precedence, "B W N"),
        write_weight=(write_weight, "B W N"),
    )
    arguments = same_dtype("temporal_link", "link", link, precedence, write_weight)
    name = resolve("temporal_link", link, backend, sizes)
    if name == "eager":
        return temporal_link_ref(*arguments)
    new_link, new_precedence = run("temporal_link", name, *arguments)
    return new_link, new_precedence


def temporal_link_ref(
    link: Tensor, precedence: Tensor, write_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """`temporal_link` in plain PyTorch."""
    after, behind = write_weight[..., :, None], write_weight[..., None, :]
    linked = torch.addcmul(after * precedence[..., None, :], 1 - after - behind, link)
    same = torch.eye(link.shape[-1], dtype=torch.bool, device=link.device)
    total = write_weight.sum(-1, keepdim=True)
    return linked.masked_fill(same, 0), torch.addcmul(write_weight, 1 - total, precedence)


_SCHEMA = (
    "(Tensor link, Tensor precedence, Tensor write_weight) "
    "-> (Tensor link_out, Tensor precedence_out)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_link, Tensor grad_precedence, Tensor link, Tensor precedence, "
    "Tensor write_weight) -> (Tensor d_link, Tensor d_precedence, Tensor d_write_weight)"
)


def _fake(link: Tensor, precedence: Tensor, write_weight: Tensor) -> tuple[Tensor, Tensor]:
    return link.new_empty(link.shape), precedence.new_empty(precedence.shape)


def _backward_fake(*arguments: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[2:])


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return ops.temporal_link_backward(*grads, *ctx.saved_tensors)

    return setup_context, backward


register(
    "temporal_link",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=from_saved(temporal_link_ref, 3),
    limits={"cuda": (at_most(2**30 - 1, "rows N", "N"),)},
)
register(
    "temporal_link_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
