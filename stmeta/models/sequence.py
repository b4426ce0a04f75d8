"""The networks of the episode and sequence tasks: a memory and what stands before and behind it."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

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


class EncodedFewShot(nn.Module):
    """A few layers that turn an image into features, and `FewShotMANN` on them, trained together.

    Args:
        in_dim: pixels of an image.
        widths: of the layers; between two of them is a ReLU. The last one is the features' width.
        ways: classes in an episode.
        config: of the memory. With `standardise` the features are batch-normalised, without which
            their cosines hardly differ and matching does not begin.
    """

    def __init__(
        self, in_dim: int, widths: tuple[int, ...], ways: int, config: FewShotConfig
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((in_dim, *widths)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.encoder = nn.Sequential(*layers[:-1])
        self.few_shot = FewShotMANN(widths[-1], ways, config)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Logits [B, L, ways] of images [B, L, in_dim]; a step sees the labels before it."""
        return self.few_shot(self.encoder(x), label)
