"""Clips for the ops that read video, in the orders of memory that loaders give."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

MEAN, STD = (0.45, 0.4, 0.5, 0.35, 0.6), (0.2, 0.25, 0.3, 0.22, 0.28)
ORDERS = ("thwc", "cthw", "wc")


def clip(generator: Generator, *shape: int, order: str = "thwc", floating: bool = False) -> Tensor:
    """[B, C, T, H, W]: bytes, or float64 in [0, 1).

    Args:
        generator: source of randomness.
        shape: B, C, T, H, W.
        order: how it lies in memory: decoded, planar, or [.., W, H] with odd strides.
        floating: float64 instead of bytes.
    """
    video = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if floating:
        video = video.double() / 256
    if order == "thwc":
        return video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    if order == "wc":
        wide = video.new_zeros(*shape[:3], shape[4], 2 * shape[3] + 1)
        wide[..., 1::2] = video.transpose(3, 4)
        return wide[..., 1::2].transpose(3, 4)
    return video
