"""An encoder of small images: convolutions and linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from stmeta.models._encoder import FeatureEncoderConfig


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(FeatureEncoderConfig):
    """Shape of an `ImageEncoder`."""

    filters: tuple[int, ...] = (32, 64, 64)
    """Of the convolutions, 3 x 3 with stride 2; () = none."""
    widths: tuple[int, ...] = (64,)
    """Of the linear layers behind them; the last one is the width of the features."""

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("ImageEncoderConfig: widths must name at least one layer, got none")

    def build(self, in_dim: int) -> ImageEncoder:
        """Make the encoder of square images with `in_dim` pixels."""
        return ImageEncoder(math.isqrt(in_dim), self.filters, self.widths)


class ImageEncoder(nn.Module):
    """Turns small images into features: convolutions that halve the sides, then linear layers.

    Args:
        side: height and width of an image.
        filters: of the convolutions, 3 x 3 with stride 2, batch norm and ReLU.
        widths: of the linear layers behind them; between two of them is a ReLU. The last one is the
            width of the features.
    """

    def __init__(self, side: int, filters: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.side, self.out_dim = side, widths[-1]
        for before, after in pairwise((1, *filters)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU())
            side = -(-side // 2)
        self.convolutions = nn.Sequential(*layers)
        layers = []
        for before, after in pairwise((side * side * (filters or (1,))[-1], *widths)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        # Channels last: convolutions of few channels then take 0.6 of the time on a CPU.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., widths[-1]] of images [..., side * side]."""
        images = x.reshape(-1, 1, self.side, self.side).contiguous(
            memory_format=torch.channels_last
        )
        return self.layers(self.convolutions(images).flatten(1)).unflatten(0, x.shape[:-1])
