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

from stmeta.ops._core.register import again
from stmeta.ops.memory.allocation import allocation_ref
from stmeta.ops.memory.content_addressing import content_addressing_ref
from stmeta.ops.memory.erase_add import erase_add_ref
from stmeta.ops.memory.location_addressing import location_addressing_ref
from stmeta.ops.memory.lrua_step import lrua_step_ref
from stmeta.ops.memory.memory_read import memory_read_ref
from stmeta.ops.memory.ntm_step import ntm_step_ref
from stmeta.ops.memory.temporal_link import temporal_link_ref
from stmeta.ops.video.gather_tokens import gather_tokens_ref
from stmeta.ops.video.locality_attention import attend
from stmeta.ops.video.masked_patch_loss import masked_patch_loss_ref
from stmeta.ops.video.patch_shift import patch_shift_ref
from stmeta.ops.video.restore_tokens import restore_tokens_ref
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed_ref

# What an op computes of its first arguments, and these: as kept, or zeros.
Call = tuple[Callable[..., Any], Sequence[Tensor | None]]


def _zeros(grad: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """One zero in this shape: it takes no memory."""
    return torch.zeros((), dtype=dtype or grad.dtype, device=grad.device).expand(shape)


def _of(reference: Callable[..., Any], count: int) -> Callable[..., Call]:
    """Of an op that keeps its first `count` arguments first and has no options."""
    return lambda ctx, grads: (reference, ctx.saved_tensors[:count])


def _content_addressing(ctx: Any, grads: Sequence[Tensor]) -> Call:
    eps = ctx.eps
    return lambda *x: content_addressing_ref(*x, eps=eps), ctx.saved_tensors[:3]


def _ntm_step(ctx: Any, grads: Sequence[Tensor]) -> Call:
    reads, read_first, eps = ctx.options

    def step(*x: Tensor) -> Any:
        return ntm_step_ref(*x, reads=reads, read_first=read_first, eps=eps)

    return step, ctx.saved_tensors[:9]


def _lrua_step(ctx: Any, grads: Sequence[Tensor]) -> Call:
    memory, *others, _, rows = ctx.saved_tensors
    read_first, shared, eps = ctx.options
    # Any usage with the same least used rows, least first.
    order = torch.arange(rows.shape[1], device=rows.device).expand_as(rows) - rows.shape[1]
    usage = memory.new_zeros(memory.shape[:2]).scatter(1, rows, order.to(memory.dtype))

    def step(*x: Tensor) -> Any:
        return lrua_step_ref(*x, read_first=read_first, shared=shared, eps=eps)

    return step, (memory, usage, *others)


def _locality_attention(ctx: Any, grads: Sequence[Tensor]) -> Call:
    exclude_self = ctx.exclude_self
    return lambda x, tau: attend(x, tau, exclude_self, products=True), ctx.saved_tensors[:2]


def _gather_tokens(ctx: Any, grads: Sequence[Tensor]) -> Call:
    ids_keep, ids_restore = ctx.saved_tensors
    (batch, tokens), dim = ids_restore.shape, grads[0].shape[2]
    pos = None if ctx.pos_dtype is None else _zeros(grads[0], tokens, dim, dtype=ctx.pos_dtype)

    def gather(x: Tensor, pos: Tensor | None) -> Tensor:
        return gather_tokens_ref(x, ids_keep, pos=pos)

    return gather, (_zeros(grads[0], batch, tokens, dim), pos)


def _restore_tokens(ctx: Any, grads: Sequence[Tensor]) -> Call:
    (ids_restore,) = ctx.saved_tensors
    (batch, tokens), dim = ids_restore.shape, grads[0].shape[2]
    shapes = ((batch, ctx.keep, dim), (dim,), (tokens, dim))
    pairs = zip(shapes, ctx.dtypes, strict=True)
    inputs = [dtype and _zeros(grads[0], *shape, dtype=dtype) for shape, dtype in pairs]

    def restore(latent: Tensor, mask_token: Tensor, pos: Tensor | None) -> Tensor:
        return restore_tokens_ref(latent, mask_token, ids_restore, pos=pos)

    return restore, inputs


def _units(video: Tensor, patch: list[int], scale: list[float], offset: list[float]) -> Any:
    """Options of a reference for what a kernel takes instead."""
    unit = 255.0 if video.dtype == torch.uint8 else 1.0
    std = [1 / (unit * s) for s in scale]
    mean = [-o * s for o, s in zip(offset, std, strict=True)]
    return {"tubelet": patch[0], "patch": patch[1], "mean": mean, "std": std}


def _masked_patch_loss(ctx: Any, grads: Sequence[Tensor]) -> Call:
    pred, video, ids, mask, *_ = ctx.saved_tensors
    norm_pix, eps = ctx.norm
    options = _units(video, *ctx.options) | {"norm_pix": norm_pix, "eps": eps}
    return lambda x: masked_patch_loss_ref(x, video, ids=ids, mask=mask, **options), (pred,)


def _patches(video: Tensor, ctx: Any) -> dict[str, Any]:
    patch, shifts, scale, offset = ctx.numbers[:4]
    eps, dtype = ctx.result
    offsets = [tuple(shifts[k : k + 3]) for k in range(0, len(shifts), 3)]
    return _units(video, patch, scale, offset) | {"shifts": offsets, "eps": eps, "dtype": dtype}


def _patch_shift(ctx: Any, grads: Sequence[Tensor]) -> Call:
    video, ids_keep, weight, *_ = ctx.saved_tensors
    options = _patches(video, ctx)
    bias = None if weight is None else _zeros(weight, *weight.shape)

    def shift(video: Tensor, ids: Any, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        norm = {"norm_weight": weight, "norm_bias": bias}
        return patch_shift_ref(video, ids_keep=ids, **norm, **options)

    return shift, (video, ids_keep, weight, bias)


def _shifted_patch_embed(ctx: Any, grads: Sequence[Tensor]) -> Call:
    video, ids_keep, norm_weight, norm_bias, weight, *_ = ctx.saved_tensors
    options, dim, needs = _patches(video, ctx), weight.shape[0], ctx.needs_input_grad
    bias = _zeros(grads[0], dim, dtype=torch.float32) if needs[5] else None
    table = (ctx.numbers[4], dim)
    pos = _zeros(grads[0], *table, dtype=torch.float32) if needs[6] else None

    def embed(video: Tensor, ids: Any, *rest: Tensor | None) -> Tensor:
        norm = {"norm_weight": rest[0], "norm_bias": rest[1]}
        weight, bias, pos = rest[2:]
        assert weight is not None
        options_of = {**norm, **options, "ids_keep": ids, "pos": pos}
        return shifted_patch_embed_ref(video, weight, bias, **options_of)

    return embed, (video, ids_keep, norm_weight, norm_bias, weight, bias, pos)


again |= {
    "allocation": _of(allocation_ref, 1),
    "content_addressing": _content_addressing,
    "erase_add": _of(erase_add_ref, 4),
    "gather_tokens": _gather_tokens,
    "locality_attention": _locality_attention,
    "location_addressing": _of(location_addressing_ref, 5),
    "lrua_step": _lrua_step,
    "masked_patch_loss": _masked_patch_loss,
    "memory_read": _of(memory_read_ref, 2),
    "ntm_step": _ntm_step,
    "patch_shift": _patch_shift,
    "restore_tokens": _restore_tokens,
    "shifted_patch_embed": _shifted_patch_embed,
    "temporal_link": _of(temporal_link_ref, 3),
}
