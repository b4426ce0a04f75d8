"""Which tokens a masked autoencoder sees, and how they go back to their places."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

MaskMode = Literal["random", "tube", "frame"]


class Masking(NamedTuple):
    """A choice of tokens. All rows of a batch keep the same number K of the N tokens."""

    ids_keep: Tensor
    """int64 [B, K], kept tokens, ascending."""
    ids_restore: Tensor
    """int64 [B, N]: token n is row ids_restore[n] of "kept tokens, then masked tokens"."""
    mask: Tensor
    """bool [B, N], True = masked."""

    @property
    def ids_masked(self) -> Tensor:
        """int64 [B, N - K], masked tokens, ascending."""
        batch, tokens = self.ids_restore.shape
        order = torch.arange(tokens, device=self.ids_restore.device).expand(batch, tokens)
        shuffle = torch.empty_like(self.ids_restore).scatter_(1, self.ids_restore, order)
        return shuffle[:, self.ids_keep.shape[1] :]


def random_masking(
    batch: int,
    tokens: int,
    ratio: float,
    generator: torch.Generator | None = None,
    mode: MaskMode = "random",
    *,
    frames: int = 1,
    device: torch.device | str | None = None,
) -> Masking:
    """Draw the tokens to keep (Feichtenhofer et al. 2022, section 3 and figure 4).

    Each row keeps floor(units * (1 - ratio)) units, at least one. A unit is a token ("random"), a
    place over all time steps ("tube"), or a time step ("frame").

    Args:
        batch: B.
        tokens: N, in the order (t h w).
        ratio: share of units to mask, in [0, 1).
        generator: source of randomness; the draw is made on its device, so that a CPU generator
            gives the same masks on every machine.
        mode: what a unit is.
        frames: time steps of the tokens; needed by "tube" and "frame".
        device: where the result goes; default: the generator's device, or the CPU.

    Raises:
        ValueError: the ratio, the mode or the number of frames cannot be.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"random_masking: ratio must be in [0, 1), got {ratio}")
    if frames < 1 or tokens % frames:
        raise ValueError(
            f"random_masking: frames must divide tokens = {tokens}, got {frames}; frames counts "
            "the time steps of the tokens (video frames / tubelet)"
        )
    place = tokens // frames
    shapes = {"random": (frames, place), "tube": (1, place), "frame": (frames, 1)}
    if mode not in shapes:
        raise ValueError(f"random_masking: mode must be one of {', '.join(shapes)}, got {mode!r}")
    source = generator.device if generator is not None else device
    units = shapes[mode]
    noise = torch.rand(batch, units[0] * units[1], generator=generator, device=source)
    # The small epsilon keeps floor(10 * (1 - 0.9)) at 1: 1 - 0.9 is a little less than 0.1.
    keep = max(1, int(noise.shape[1] * (1 - ratio) + 1e-6))
    chosen = noise.argsort(dim=1)[:, :keep]
    mask = torch.ones_like(noise, dtype=torch.bool).scatter_(1, chosen, False)
    mask = mask.view(batch, *units).expand(batch, frames, place).reshape(batch, tokens)
    return _from_mask(mask.to(device or mask.device), keep * tokens // noise.shape[1])


def masking_from_keep(ids_keep: Tensor, tokens: int) -> Masking:
    """Complete a choice of kept tokens [B, K] (unique in a row, any order) out of N tokens.

    The order of `ids_keep` is kept.
    """
    batch, keep = ids_keep.shape
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=ids_keep.device)
    mask.scatter_(1, ids_keep, False)
    rank = mask.cumsum(1) + (keep - 1)
    order = torch.arange(keep, device=ids_keep.device).expand(batch, keep)
    return Masking(ids_keep, rank.scatter_(1, ids_keep, order), mask)


def _from_mask(mask: Tensor, keep: int) -> Masking:
    # Sorted ids: the patch op then walks through the video in memory order.
    ids_keep = mask.byte().argsort(dim=1, stable=True)[:, :keep]
    rank_masked, rank_kept = mask.cumsum(1) + (keep - 1), (~mask).cumsum(1) - 1
    return Masking(ids_keep, torch.where(mask, rank_masked, rank_kept), mask)


def restore_tokens(tokens: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Put kept tokens back to their places and fill the others with the mask token.

    Args:
        tokens: [B, K, D], kept tokens in the order of `ids_keep`.
        mask_token: [1, 1, D].
        ids_restore: int64 [B, N], see `Masking`.

    Returns:
        [B, N, D].
    """
    batch, keep, dim = tokens.shape
    missing = ids_restore.shape[1] - keep
    full = torch.cat([tokens, mask_token.to(tokens.dtype).expand(batch, missing, dim)], dim=1)
    # Every index occurs once, so the backward of this gather adds nothing up: deterministic.
    return full.gather(1, ids_restore[:, :, None].expand(-1, -1, dim))
