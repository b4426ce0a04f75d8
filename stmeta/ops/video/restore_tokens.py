"""Puts kept tokens back to their places among mask tokens, and adds positions.

Implementations: video/restore_tokens in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import (
    check_dense,
    check_float,
    check_ids,
    check_shapes,
    needs_gradient,
    repeats,
    single_or,
)
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import zeros
from stmeta.ops._core.limits import DIFFERENT_IDS, at_most, joined
from stmeta.ops._core.register import register

__all__ = ["restore_tokens", "restore_tokens_ref"]


def restore_tokens(
    latent: Tensor,
    mask_token: Tensor,
    ids_restore: Tensor,
    *,
    pos: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Rebuild the full sequence of a masked autoencoder's decoder (He et al. 2021, section 3).

    Args:
        latent: [B, K, D], kept tokens in the order of `ids_keep`; fp32, bf16 or fp16 (fp64 in
            eager).
        mask_token: D numbers in any shape, such as [1, 1, D]; stands where no token was kept.
        ids_restore: int64 [B, N]: token n is row ids_restore[n] of "kept tokens, then masked ones"
            (`Masking.ids_restore`); each value below K occurs once in a row,
            or eager runs where a gradient is needed (seen on the CPU).
        pos: [N, D] positional embedding, or None.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        [B, N, D], dtype of `latent`; positions are added in fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or an id is out of range (on the CPU).
        BackendUnavailableError: the named backend cannot run here.
    """
    check_dense("restore_tokens", latent=latent, mask_token=mask_token)
    if mask_token.numel() != latent.shape[-1]:
        raise ValueError(
            f"restore_tokens: mask_token must have D = {latent.shape[-1]} numbers to match latent "
            f"{list(latent.shape)}, got {list(mask_token.shape)}"
        )
    mask_token = mask_token.reshape(-1)
    arguments = {
        "latent": (latent, "B K D"),
        "mask_token": (mask_token, "D"),
        "ids_restore": (ids_restore, "B N"),
    }
    if pos is not None:
        arguments["pos"] = (pos, "N D")
    sizes = check_shapes("restore_tokens", **arguments)
    check_float("restore_tokens", "latent", latent)
    check_ids("restore_tokens", "ids_restore", ids_restore, ids_restore.shape[1])
    if needs_gradient(latent, mask_token, pos):
        sizes["twice"] = repeats(ids_restore, sizes["K"], complete=True)
    name = resolve("restore_tokens", latent, backend, sizes)
    if name == "eager":
        return restore_tokens_ref(latent, mask_token, ids_restore, pos=pos)
    others = (single_or(latent.dtype, x) for x in (mask_token, pos))
    return run("restore_tokens", name, latent, *others, ids_restore)


def restore_tokens_ref(
    latent: Tensor, mask_token: Tensor, ids_restore: Tensor, *, pos: Tensor | None = None
) -> Tensor:
    """`restore_tokens` in plain PyTorch, as masked autoencoders are commonly written."""
    batch, keep, dim = latent.shape
    missing = mask_token.to(latent.dtype).expand(batch, ids_restore.shape[1] - keep, dim)
    full = torch.cat([latent, missing], dim=1)
    # Every index occurs once, so the backward of this gather adds nothing up: deterministic.
    tokens = full.gather(1, ids_restore[:, :, None].expand(-1, -1, dim))
    return tokens if pos is None else (tokens + pos).to(latent.dtype)


_SCHEMA = "(Tensor latent, Tensor mask_token, Tensor? pos, Tensor ids_restore) -> Tensor"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor ids_restore, SymInt keep, bool[] needs) "
    "-> (Tensor grad_latent, Tensor grad_mask, Tensor grad_pos)"
)


def _fake(latent: Tensor, mask_token: Tensor, pos: Tensor | None, ids_restore: Tensor) -> Tensor:
    return latent.new_empty(*ids_restore.shape, latent.shape[2])


def _backward_fake(
    grad: Tensor, ids_restore: Tensor, keep: int, needs: list[bool]
) -> tuple[Tensor, ...]:
    batch, tokens, dim = grad.shape
    return (
        grad.new_empty((batch, keep, dim) if needs[0] else (0,)),
        grad.new_empty((dim,) if needs[1] else (0,), dtype=torch.float32),
        grad.new_empty((tokens, dim) if needs[2] else (0,), dtype=torch.float32),
    )


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        latent, mask_token, pos, ids_restore = inputs
        ctx.keep = latent.shape[1]
        ctx.dtypes = [latent.dtype, mask_token.dtype, None if pos is None else pos.dtype]
        ctx.save_for_backward(ids_restore)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = ops.restore_tokens_backward(grad, *ctx.saved_tensors, ctx.keep, needs)
        pairs = zip(grads, ctx.dtypes, needs, strict=True)
        return *(g.to(dtype) if need else None for g, dtype, need in pairs), None

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    (ids_restore,), (grad,) = ctx.saved_tensors, grads
    (batch, tokens), dim = ids_restore.shape, grad.shape[2]
    shapes = ((batch, ctx.keep, dim), (dim,), (tokens, dim))
    pairs = zip(shapes, ctx.dtypes, strict=True)
    inputs = [dtype and zeros(grad, *shape, dtype=dtype) for shape, dtype in pairs]

    def restore(latent: Tensor, mask_token: Tensor, pos: Tensor | None) -> Tensor:
        return restore_tokens_ref(latent, mask_token, ids_restore, pos=pos)

    return restore, inputs


register(
    "restore_tokens",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=joined({"cuda": (at_most(2**31 - 1, "tokens B * N", "B", "N"),)}, DIFFERENT_IDS),
)
register(
    "restore_tokens_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
