"""A memory with a linear head, for sequences."""

from __future__ import annotations

from torch import Tensor, nn

from stmeta.memory import Cell


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
