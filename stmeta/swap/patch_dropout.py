"""Patch dropout (Liu et al. 2022) as timm defines it: random tokens are left out in training."""

from __future__ import annotations

import torch
from timm.layers import patch_dropout as theirs  # pyright: ignore
from torch import Tensor

from stmeta.ops.video.gather_tokens import gather_tokens
from stmeta.swap._common import Fused, known, plain_method

VERSION = "this version of timm defines it in another way than those we have read"
_FORWARD = ("9da0f1a60b443a92", "b60091977e15db71")


class FusedPatchDropout(Fused, theirs.PatchDropout):
    """Keeps the prefix and a random choice of the other tokens: [B, L, D] to [B, P + K, D]."""

    ops = "gather_tokens"
    plain_forward = plain_method(theirs.PatchDropout.forward)

    @classmethod
    def why_not(cls, module: theirs.PatchDropout) -> str:
        """Why it must stay."""
        return why_not()

    def forward(self, x: Tensor) -> Tensor:
        """Drop tokens; draws the same random numbers as the class that it stands in for."""
        if not torch.jit.is_scripting():  # pyright: ignore
            if self.training and self.prob > 0 and self.runs_ops(x) and x.dim() == 3:
                return _drop(self, x)
        return self.plain_forward(x)


def _drop(drop: FusedPatchDropout, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    prefix = drop.num_prefix_tokens
    ids = draw_kept(drop, batch, length - prefix, x.device)
    first = torch.arange(prefix, device=x.device).expand(batch, -1)
    return gather_tokens(x, torch.cat([first, ids + prefix], 1), backend=drop.stmeta_backend)


def why_not() -> str:
    """Why patch dropout must stay as it is."""
    functions = (theirs.PatchDropout.forward, theirs.patch_dropout_forward)
    return "" if known(*functions, digests=_FORWARD) else VERSION


def draw_kept(drop: theirs.PatchDropout, batch: int, tokens: int, device: torch.device) -> Tensor:
    """Tokens that stay in training, without the prefix: int64 [B, K], by timm's random numbers."""
    keep = max(1, int(tokens * (1.0 - drop.prob)))
    ids = torch.randn(batch, tokens, device=device).argsort(dim=-1)[:, :keep]
    return ids.sort(dim=-1)[0] if drop.ordered else ids
