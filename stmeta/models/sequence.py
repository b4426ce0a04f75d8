"""The networks of the episode and sequence tasks: a memory and what stands before and behind it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.memory import DNCCell, LSTMCell, MANNCell, NTMCell
from stmeta.models.mann import FewShotConfig, FewShotMANN

Cell = MANNCell | NTMCell | DNCCell | LSTMCell


class SequenceModel(nn.Module):
    """Logits of every step: `head(cell(x))`.

    Args:
        cell: the memory.
        out_dim: width of the logits.
    """

    def __init__(self, cell: Cell, out_dim: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(cell.out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run a batch of sequences [B, T, in_dim] from the first state on: [B, T, out_dim]."""
        y, _ = self.cell(x)
        return self.head(y)


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
        self.side = side
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


class EncodedSequence(nn.Module):
    """An encoder that turns images into features, and any memory on them, trained together.

    Args:
        encoder: images [B, L, pixels] -> features [B, L, width].
        width: of the features.
        ways: classes in an episode.
        cell: takes 2 * width + ways numbers a step: features, the last image's and its label.
    """

    def __init__(self, encoder: nn.Module, width: int, ways: int, cell: Cell) -> None:
        super().__init__()
        self.encoder, self.ways = encoder, ways
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.sequence = SequenceModel(cell, ways)

    def forward(
        self, x: Tensor, label: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `EncodedFewShot`; a step sees the label before it."""
        features = self.encoder(x)
        seen = self.standardise(features.flatten(0, 1)).view_as(features)
        last = F.pad(seen[:, :-1], (0, 0, 1, 0))
        known = F.pad(F.one_hot(label[:, :-1], self.ways).to(seen), (0, 0, 1, 0))
        logits = self.sequence(torch.cat([seen, last, known], 2))
        return (logits, features) if with_features else logits


class EncodedFewShot(nn.Module):
    """An encoder that turns images into features, and `FewShotMANN` on them, trained together.

    Args:
        encoder: images [B, L, pixels] -> features [B, L, width].
        width: of the features.
        ways: classes in an episode.
        config: of the memory. With `standardise` the features are batch-normalised, without which
            their cosines hardly differ and matching does not begin.
    """

    def __init__(self, encoder: nn.Module, width: int, ways: int, config: FewShotConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.few_shot = FewShotMANN(width, ways, config)

    def forward(
        self, x: Tensor, label: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, L, ways] of images [B, L, pixels]; a step sees the labels before it.

        With features: the logits and the encoder's features, [B, L, width].
        """
        features = self.encoder(x)
        logits = self.few_shot(features, label)
        return (logits, features) if with_features else logits
