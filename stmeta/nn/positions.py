"""Positions of video tokens: a table for space plus a table for time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PositionKind = Literal["learned", "sincos"]


class SeparablePositions(nn.Module):
    """Separable space and time embeddings (Feichtenhofer et al. 2022, section 3).

    Token (t, y, x) gets `time[t] + space[y * W + x]`; the class token gets `cls`.

    Args:
        grid: tokens in time, height and width.
        dim: width of a token.
        cls: add a position for a class token.
        kind: "learned", or "sincos" for fixed tables without parameters.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        dim: int,
        *,
        cls: bool = True,
        kind: PositionKind = "learned",
    ) -> None:
        super().__init__()
        if kind not in ("learned", "sincos"):
            raise ValueError(
                f"SeparablePositions: kind must be 'learned' or 'sincos', got {kind!r}"
            )
        self.grid, self.kind = grid, kind
        frames, height, width = grid
        if kind == "learned":
            self.space = nn.Parameter(torch.empty(height * width, dim))
            self.time = nn.Parameter(torch.empty(frames, dim))
            self.cls = nn.Parameter(torch.empty(1, 1, dim)) if cls else None
            for table in self.parameters():
                nn.init.trunc_normal_(table, std=0.02)
        else:
            self.register_buffer("space", sincos_2d(height, width, dim), persistent=False)
            self.register_buffer("time", sincos_1d(torch.arange(frames), dim), persistent=False)
            self.cls = None

    def table(self) -> Tensor:
        """Positions of all N tokens, [N, D], in the order (t h w)."""
        return (self.time[:, None] + self.space).flatten(0, 1)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Add positions to patch tokens.

        Args:
            tokens: [B, K, D], or [B, N, D] in the order (t h w).
            ids_keep: int64 [B, K], which tokens these are; None = all N of the grid.

        Returns:
            [B, K or N, D].
        """
        table = self.table()
        if ids_keep is None:
            if tokens.shape[1] != table.shape[0]:
                raise ValueError(
                    f"SeparablePositions: without ids_keep the tokens must be [B, N, D] with N = "
                    f"{table.shape[0]} for the grid {self.grid}, got {list(tokens.shape)}"
                )
            return tokens + table
        if ids_keep.shape != tokens.shape[:2]:
            raise ValueError(
                f"SeparablePositions: ids_keep must be [B, K] = {list(tokens.shape[:2])} to match "
                f"tokens {list(tokens.shape)}, got {list(ids_keep.shape)}"
            )
        # One lookup in the summed table; its backward adds rows without an [B, N, D] buffer.
        return tokens + F.embedding(ids_keep, table)

    def extra_repr(self) -> str:
        """Show the grid and the kind."""
        return f"grid={self.grid}, kind={self.kind!r}"


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Sine and cosine features of positions (Vaswani et al. 2017, section 3.5): [n] to [n, dim]."""
    if dim % 2:
        raise ValueError(f"sincos_1d: dim must be even, got {dim}")
    rate = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = positions.double().flatten()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Sine and cosine features of a grid: [height * width, dim]; half for x, half for y."""
    if dim % 4:
        raise ValueError(f"sincos_2d: dim must be a multiple of 4, got {dim}")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sincos_1d(x, dim // 2), sincos_1d(y, dim // 2)], dim=1)
