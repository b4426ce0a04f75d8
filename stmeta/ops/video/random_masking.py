"""Draws the tokens that a masked autoencoder sees.

Implementations: video/random_masking in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.limits import CUDA_TOKENS, at_most
from stmeta.ops._core.register import register

__all__ = ["MaskMode", "Masking", "masking_from_keep", "random_masking", "random_masking_ref"]

MaskMode = Literal["random", "tube", "frame"]


class Masking(NamedTuple):
    """A choice of tokens. All rows of a batch keep the same number K of the N tokens."""

    ids_keep: Tensor
    """int64 [B, K], kept tokens, ascending."""
    ids_restore: Tensor
    """int64 [B, N]: token n is row ids_restore[n] of "kept tokens, then masked tokens"."""
    ids_masked: Tensor
    """int64 [B, N - K], masked tokens, ascending."""
    mask: Tensor
    """bool [B, N], True = masked."""


def random_masking(
    batch: int,
    tokens: int,
    ratio: float,
    generator: torch.Generator | None = None,
    mode: MaskMode = "random",
    *,
    frames: int = 1,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Masking:
    """Draw the tokens to keep (Feichtenhofer et al. 2022, section 3 and figure 4).

    Each row keeps floor(units * (1 - ratio)) units, at least one: those with the smallest of
    uniform noise. A unit is a token ("random"), a place over all time steps ("tube"), or a time
    step ("frame").

    Args:
        batch: B.
        tokens: N, in the order (t h w).
        ratio: share of units to mask, in [0, 1).
        generator: source of randomness; the noise is drawn on its device, so that a CPU generator
            gives the same masks on every machine.
        mode: what a unit is.
        frames: time steps of the tokens; needed by "tube" and "frame".
        device: where the result goes; default: the generator's device, or the CPU.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Raises:
        ValueError: the ratio, the mode or the number of frames cannot be.
        BackendUnavailableError: the named backend cannot run here.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"random_masking: ratio must be in [0, 1), got {ratio}")
    if frames < 1 or tokens % frames:
        raise ValueError(
            f"random_masking: frames must divide tokens = {tokens}, got {frames}; frames counts "
            "the time steps of the tokens (video frames / tubelet)"
        )
    grid = [frames, tokens // frames]
    shapes = {"random": grid, "tube": [1, grid[1]], "frame": [grid[0], 1]}
    if mode not in shapes:
        raise ValueError(f"random_masking: mode must be one of {', '.join(shapes)}, got {mode!r}")
    units = shapes[mode]
    source = generator.device if generator is not None else device
    noise = torch.rand(batch, units[0] * units[1], generator=generator, device=source)
    noise = noise.to(device or noise.device)
    # The small epsilon keeps floor(10 * (1 - 0.9)) at 1: 1 - 0.9 is a little less than 0.1.
    keep = min(max(1, int(noise.shape[1] * (1 - ratio) + 1e-6)), noise.shape[1])
    name = resolve("random_masking", noise, backend, {"B": batch, "N": tokens})
    if name == "eager":
        return random_masking_ref(noise, keep, units, grid)
    return Masking(*run("random_masking", name, noise, keep, units, grid))


def random_masking_ref(
    noise: Tensor, keep: int, units: Sequence[int], grid: Sequence[int]
) -> Masking:
    """Keep the `keep` units with the smallest noise, in plain PyTorch.

    Args:
        noise: [B, units], units = ut * up.
        keep: number of units to keep; on a tie the lower unit stays.
        units: [ut, up], each 1 or the number of `grid`: units in time and in space.
        grid: [T, P], tokens in time and in space; N = T * P.
    """
    batch, (frames, places) = noise.shape[0], grid
    chosen = noise.argsort(dim=1, stable=True)[:, :keep]
    mask = torch.ones_like(noise, dtype=torch.bool).scatter(1, chosen, False)
    mask = mask.view(batch, *units).expand(batch, frames, places).reshape(batch, frames * places)
    kept = keep * frames * places // max(noise.shape[1], 1)
    # A stable sort of the mask: kept tokens first, both parts ascending, so that the patch op
    # walks through the video in memory order.
    order = mask.byte().argsort(dim=1, stable=True)
    steps = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ids_restore = torch.empty_like(order).scatter(1, order, steps)
    return Masking(order[:, :kept].contiguous(), ids_restore, order[:, kept:].contiguous(), mask)


def masking_from_keep(ids_keep: Tensor, tokens: int) -> Masking:
    """Complete a choice of kept tokens [B, K] (unique in a row, any order) out of N tokens.

    The order of `ids_keep` is kept; masked tokens are ascending.
    """
    batch, keep = ids_keep.shape
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=ids_keep.device)
    mask = mask.scatter(1, ids_keep, False)
    rank = mask.cumsum(1) + (keep - 1)
    order = torch.arange(keep, device=ids_keep.device).expand(batch, keep)
    ids_masked = (~mask).byte().argsort(dim=1, stable=True)[:, : tokens - keep]
    return Masking(ids_keep, rank.scatter(1, ids_keep, order), ids_masked.contiguous(), mask)


_SCHEMA = (
    "(Tensor noise, int keep, int[] units, int[] grid) "
    "-> (Tensor ids_keep, Tensor ids_restore, Tensor ids_masked, Tensor mask)"
)


def _fake(
    noise: Tensor, keep: int, units: Sequence[int], grid: Sequence[int]
) -> tuple[Tensor, ...]:
    batch, tokens = noise.shape[0], grid[0] * grid[1]
    kept = keep * tokens // max(units[0] * units[1], 1)
    sizes = (kept, tokens, tokens - kept)
    ids = (noise.new_empty(batch, size, dtype=torch.int64) for size in sizes)
    return *ids, noise.new_empty(batch, tokens, dtype=torch.bool)


register(
    "random_masking",
    _SCHEMA,
    _fake,
    module=__name__,
    limits={
        "cuda": (at_most(CUDA_TOKENS - 1, "tokens N", "N"), at_most(2**31 - 1, "elements B", "B"))
    },
)
