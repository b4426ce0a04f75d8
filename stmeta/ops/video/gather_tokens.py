"""Picks tokens, and adds their positions.

Implementations: video/gather_tokens in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stmeta.ops._core.args import (
    check_float,
    check_ids,
    check_shapes,
    needs_gradient,
    single_or,
    visible,
)
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import zeros
from stmeta.ops._core.limits import DIFFERENT_IDS, at_most, joined
from stmeta.ops._core.register import register

__all__ = ["gather_tokens", "gather_tokens_ref"]


def gather_tokens(
    x: Tensor,
    ids_keep: Tensor,
    *,
    pos: Tensor | None = None,
    ids_restore: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Keep some tokens of each row, and add their positional embedding.

    The ids of a row differ, so the backward is a gather as well: no atomics, the same bits twice.

    Args:
        x: [B, N, D]; fp32, bf16 or fp16 (fp64 in eager).
        ids_keep: int64 [B, K], values in [0, N), no two alike in a row where a
            gradient is needed (eager takes them; seen on the CPU).
        pos: [N, D] positional embedding, or None.
        ids_restore: int64 [B, N], where each token lies among the kept ones, K or more where it is
            not kept (`Masking.ids_restore`). Computed from `ids_keep` where it is missing.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        [B, K, D], dtype of `x`: x[b, ids_keep[b, k]] + pos[ids_keep[b, k]], added in fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or an id is out of range (on the CPU).
        BackendUnavailableError: the named backend cannot run here.
    """
    arguments = {"x": (x, "B N D"), "ids_keep": (ids_keep, "B K")}
    if pos is not None:
        arguments["pos"] = (pos, "N D")
    if ids_restore is not None:
        arguments["ids_restore"] = (ids_restore, "B N")
    sizes = check_shapes("gather_tokens", **arguments)
    check_float("gather_tokens", "x", x)
    check_ids("gather_tokens", "ids_keep", ids_keep, x.shape[1])
    if ids_restore is not None and ids_restore.dtype != torch.int64:
        raise ValueError(
            f"gather_tokens: ids_restore must be int64, got {ids_restore.dtype}; use .long()"
        )
    needed = needs_gradient(x, pos)
    if needed and visible(ids_keep) is not None:
        places = invert_ids(ids_keep, sizes["N"])
        order = torch.arange(sizes["K"], device=places.device).expand_as(ids_keep)
        sizes["twice"] = not torch.equal(places.gather(1, ids_keep), order)
        if ids_restore is not None:
            _check_places(ids_restore, places, sizes["K"])
        ids_restore = places
    name = resolve("gather_tokens", x, backend, sizes)
    if name == "eager":
        return gather_tokens_ref(x, ids_keep, pos=pos)
    if needed and ids_restore is None:
        ids_restore = invert_ids(ids_keep, sizes["N"])
    return run("gather_tokens", name, x, single_or(x.dtype, pos), ids_keep, ids_restore)


def _check_places(ids_restore: Tensor, places: Tensor, keep: int) -> None:
    if not torch.equal(ids_restore.clamp(max=keep), places):
        raise ValueError(
            "gather_tokens: ids_restore must say where each token lies in ids_keep, and K or more "
            "where it does not, got other places; leave it out, or take both of one Masking"
        )


def invert_ids(ids_keep: Tensor, tokens: int) -> Tensor:
    """Where each of N tokens lies among the K kept ones, K where it is not kept: [B, N]."""
    batch, keep = ids_keep.shape
    places = ids_keep.new_full((batch, tokens), keep)
    return places.scatter_(
        1, ids_keep, torch.arange(keep, device=places.device).expand_as(ids_keep)
    )


def gather_tokens_ref(x: Tensor, ids_keep: Tensor, *, pos: Tensor | None = None) -> Tensor:
    """`gather_tokens` in plain PyTorch."""
    kept = x.gather(1, ids_keep[:, :, None].expand(-1, -1, x.shape[2]))
    if pos is None:
        return kept
    return (kept + functional.embedding(ids_keep, pos)).to(x.dtype)


_SCHEMA = "(Tensor x, Tensor? pos, Tensor ids_keep, Tensor? ids_restore) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor ids_keep, Tensor ids_restore, bool[] needs) "
    "-> (Tensor grad_x, Tensor grad_pos)"
)


def _fake(x: Tensor, pos: Tensor | None, ids_keep: Tensor, ids_restore: Tensor | None) -> Tensor:
    return x.new_empty(*ids_keep.shape, x.shape[2])


def _backward_fake(
    grad: Tensor, ids_keep: Tensor, ids_restore: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    batch, tokens = ids_restore.shape
    x = (batch, tokens, grad.shape[2]) if needs[0] else (0,)
    pos = (tokens, grad.shape[2]) if needs[1] else (0,)
    return grad.new_empty(x), grad.new_empty(pos, dtype=torch.float32)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, pos, ids_keep, ids_restore = inputs
        if ids_restore is None:
            ids_restore = invert_ids(ids_keep, x.shape[1])
        ctx.pos_dtype = None if pos is None else pos.dtype
        ctx.save_for_backward(ids_keep, ids_restore)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:2])
        x, pos = ops.gather_tokens_backward(grad, *ctx.saved_tensors, needs)
        return x if needs[0] else None, pos.to(ctx.pos_dtype) if needs[1] else None, None, None

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    (ids_keep, ids_restore), (grad,) = ctx.saved_tensors, grads
    (batch, tokens), dim = ids_restore.shape, grad.shape[2]
    pos = None if ctx.pos_dtype is None else zeros(grad, tokens, dim, dtype=ctx.pos_dtype)

    def gather(x: Tensor, pos: Tensor | None) -> Tensor:
        return gather_tokens_ref(x, ids_keep, pos=pos)

    return gather, (zeros(grad, batch, tokens, dim), pos)


register(
    "gather_tokens",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=joined({"cuda": (at_most(2**31 - 1, "tokens B * N", "B", "N"),)}, DIFFERENT_IDS),
)
register(
    "gather_tokens_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
