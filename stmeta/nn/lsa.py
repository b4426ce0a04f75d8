"""Locality self-attention: a learned temperature per head and no attention to oneself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmeta.ops.video.locality_attention import locality_attention


class LocalitySelfAttention(nn.Module):
    """Multi-head self-attention with the two changes of Lee et al. 2021 (eq. 6-8).

    1. The logits are q kᵀ · τ with one learned τ per head, d_h ** -0.5 at the start.
    2. The diagonal of the logits is masked, so that a token looks at the others.

    Args:
        dim: width of a token.
        heads: number of heads.
        head_dim: width d_h of a head; heads * head_dim may differ from `dim`.
        qkv_bias: bias on queries, keys and values.
        dropout: on the output.
        locality: False = plain attention: τ fixed, no mask.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        locality: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)
        temperature = torch.full((heads,), head_dim**-0.5)
        self.locality = locality
        if locality:
            self.temperature = nn.Parameter(temperature)
        else:
            self.register_buffer("temperature", temperature, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence: [B, N, dim] to [B, N, dim].

        Raises:
            ValueError: another shape.
        """
        if x.dim() != 3 or x.shape[2] != self.qkv.in_features:
            raise ValueError(
                f"LocalitySelfAttention: x must be [B, N, dim] with dim = {self.qkv.in_features}, "
                f"got {list(x.shape)}; one sequence is x[None]"
            )
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim)
        out = locality_attention(qkv, self.temperature, exclude_self=self.locality)
        return self.dropout(self.proj(out.reshape(batch, tokens, -1)))
