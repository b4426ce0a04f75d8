"""The Transformer block: pre-norm attention and MLP, stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.nn.lsa import LocalitySelfAttention


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for whole samples.

    Args:
        rate: chance of dropping in training; the kept branches are divided by 1 - rate.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath: rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of a branch [B, ...]."""
        if self.rate == 0.0 or not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = torch.rand(shape, device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"{self.rate}"


class Mlp(nn.Module):
    """Linear, GELU, Linear on [..., dim]."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token on its own."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm Transformer block (Dosovitskiy et al. 2021, eq. 2-3) with locality attention.

    Args:
        dim: width of a token.
        heads: attention heads.
        head_dim: width of a head.
        mlp_ratio: hidden width of the MLP in units of `dim`.
        qkv_bias: bias on queries, keys and values.
        locality: learned temperature and masked diagonal (`LocalitySelfAttention`).
        dropout: on the output of the attention and inside the MLP.
        drop_path: chance that a branch is skipped for a sample in training.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = False,
        locality: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = LocalitySelfAttention(
            dim, heads, head_dim, qkv_bias=qkv_bias, dropout=dropout, locality=locality
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] to [B, N, dim]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_weights(module: nn.Module) -> None:
    """Initialise as MAE does: Xavier-uniform matrices, zero biases, unit LayerNorms.

    Use with `model.apply(init_weights)`.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
