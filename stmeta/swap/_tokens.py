"""What masked autoencoders share: orders of tokens, embedding kept ones, filling up the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional

from stmeta.nn.spt import compute_dtype
from stmeta.ops.video.restore_tokens import restore_tokens
from stmeta.swap import conv

_UNEVEN = (
    "fuse: in one graph, all rows of a mask must hide the same number of tokens and leave two or "
    "more visible; unfuse the model first, or compile it without fullgraph=True"
)


def invert(order: Tensor) -> Tensor:
    """Inverse of the permutation in each row of int64 [B, N]."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def visible_first(masked: Any, batch: int, tokens: int) -> tuple[Tensor, int] | None:
    """Order a mask's tokens: visible ones, then masked ones, both ascending.

    In one graph (`fullgraph=True`, export) the numbers are not known while it is made: then it is
    taken that the rows agree in number, and an assertion in the graph says where they do not.

    Args:
        masked: bool [B, N], True = masked.
        batch: B.
        tokens: N.

    Returns:
        int64 [B, N] and the number of visible tokens in each row; None where the rows differ in
        number, a kind is missing, or it is no such mask.
    """
    if not isinstance(masked, Tensor) or masked.dtype != torch.bool:
        return None
    if masked.shape != (batch, tokens) or batch == 0:
        return None
    counts = (~masked).sum(dim=1)
    fewest, keep = torch.stack(torch.aminmax(counts)).tolist()
    if guard_or_false(fewest != keep) or guard_or_false(keep < 1) or guard_or_false(keep >= tokens):
        return None
    if torch.compiler.is_compiling():
        good = (counts == keep) & (counts > 1) & (counts < tokens)
        torch._assert_async(good.all(), _UNEVEN)  # pyright: ignore
        torch._check(keep > 1)  # attention asks for it
        torch._check(keep < tokens)
    return masked.byte().argsort(dim=1, stable=True), keep


def same_number(latent: Tensor, keep: int) -> None:
    """Check that an encoder gave as many tokens as the mask leaves visible.

    Raises:
        ValueError: it gave others.
        RuntimeError: the same, in one graph, where the numbers are not known before.
    """
    found = latent.shape[1]
    if guard_or_false(found != keep):
        raise ValueError(
            f"fuse: the encoder must give a token for each of the {keep} that the mask leaves "
            f"visible, got {found}; unfuse the model if it is meant"
        )
    torch._check(found == keep)


def embed_kept(
    projection: conv.Conv, video: Tensor, ids_keep: Tensor, table: Tensor, backend: str
) -> Tensor:
    """Embed kept tokens with a convolution's weights and add their positions.

    Args:
        projection: a convolution that `conv.covers` the video with.
        video: [B, C, T, H, W].
        ids_keep: int64 [B, K].
        table: [N, D], positions.
        backend: of the op.

    Returns:
        [B, K, D] in the dtype of a sum of embedding and positions.
    """
    dtype = compute_dtype(projection.weight)
    if torch.promote_types(dtype, table.dtype) == dtype:
        return conv.embed(projection, video, backend, ids_keep=ids_keep, pos=table)
    # Under autocast the embedding is in bf16 and the sum in fp32.
    tokens = conv.embed(projection, video, backend, ids_keep=ids_keep)
    return tokens + functional.embedding(ids_keep, table)


def fill(
    latent: Tensor, mask_token: Tensor, ids_restore: Tensor, table: Tensor, backend: str
) -> Tensor:
    """Put kept tokens back among mask tokens and add positions, in the dtype of such a sum.

    Args:
        latent: [B, K, D]; [B, 1 + K, D] with a class token in front.
        mask_token: [1, 1, D].
        ids_restore: int64 [B, N].
        table: [N, D]; [1 + N, D] with a row for the class token.
        backend: of the op.

    Returns:
        [B, N, D] or [B, 1 + N, D].
    """
    dtype = torch.promote_types(torch.promote_types(latent.dtype, mask_token.dtype), table.dtype)
    if table.shape[0] == ids_restore.shape[1] + 1:
        ids_restore = functional.pad(ids_restore + 1, (1, 0))
    return restore_tokens(latent.to(dtype), mask_token, ids_restore, pos=table, backend=backend)


def assemble(
    latent: Tensor, mask_token: Tensor, order: Tensor, table: Tensor, backend: str
) -> Tensor:
    """Visible tokens, then mask tokens, each with its position.

    Positions differ by row of the batch, so the rows are laid end to end as one sequence.

    Args:
        latent: [B, K, D].
        mask_token: [1, 1, D].
        order: int64 [B, N]: which tokens those are, K visible ones first.
        table: [N, D], positions.
        backend: of the op.

    Returns:
        [B, N, D] in the dtype of such a sum.
    """
    (batch, count), (_, keep, dim) = order.shape, latent.shape
    row = torch.arange(batch, device=order.device)[:, None]
    place = torch.arange(count, device=order.device)[None]
    hidden = batch * keep + row * (count - keep) + (place - keep)
    ids_restore = torch.where(place < keep, row * keep + place, hidden).view(1, -1)
    pos = functional.embedding(order.flatten(), table)
    rows = latent.reshape(1, batch * keep, dim)
    return fill(rows, mask_token, ids_restore, pos, backend).view(batch, count, dim)
