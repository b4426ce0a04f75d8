"""Shifted patches and locality attention (Lee et al. 2021) as vit-pytorch defines them.

Shifts are of one pixel, features of a token in the order of `patch_shift`, and one temperature,
kept as its logarithm, is shared by all heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from vit_pytorch import vit_for_small_dataset as theirs  # pyright: ignore

from stmeta.ops.video.locality_attention import locality_attention
from stmeta.swap import patches
from stmeta.swap._common import Fused, disturbed, known

_VERSION = "this version of vit-pytorch defines it in another way than those we have read"
_SPT = ("5303472e010d8e72",)
_LSA = ("dd6d914210894142",)
SHIFTS = 5  # the pixels, and four shifts of them


class FusedSPT(Fused, theirs.SPT):
    """Shifted patches of images [B, C, H, W] to tokens [B, N, D]."""

    ops = 'shifted_patch_embed, shifts="cardinal"'

    @classmethod
    def why_not(cls, module: theirs.SPT) -> str:
        """Why this tokenization must stay."""
        if not known(theirs.SPT.forward, digests=_SPT):
            return _VERSION
        cut = _cut(module)
        return cut if isinstance(cut, str) else ""

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        cut = _cut(self)
        if isinstance(cut, str) or not self.runs_ops(x) or not patches.covers(cut, x, SHIFTS):
            return super().forward(x)
        return patches.embed(cut, x.unsqueeze(2), self.stmeta_backend, "cardinal")


def _cut(module: theirs.SPT) -> patches.Cut | str:
    """How its patches are cut and embedded, or why the op does not cover that."""
    parts = patches.modules_of(module.to_patch_tokens, "to_patch_tokens")
    cut = parts if isinstance(parts, str) else patches.read(parts)
    if isinstance(cut, str):
        return cut
    whole = len(parts) == cut.rest and cut.norm is not None
    if not whole or cut.axes != ("fhw",) or cut.tubelet != 1:
        return "to_patch_tokens is not Rearrange of an image, LayerNorm, Linear"
    return cut


class FusedLSA(Fused, theirs.LSA):
    """Attention with a learned temperature and without oneself: [B, N, D] to [B, N, D]."""

    ops = "locality_attention"

    @classmethod
    def why_not(cls, module: theirs.LSA) -> str:
        """Why this attention must stay."""
        if not known(theirs.LSA.forward, digests=_LSA):
            return _VERSION
        if type(module.dropout) is not nn.Dropout:
            return f"dropout is a {type(module.dropout).__name__}"
        if type(module.attend) is not nn.Softmax or module.attend.dim not in (-1, 3):
            return f"attend is {module.attend}, not a softmax over keys"
        if module.dropout.p > 0:
            return f"dropout of {module.dropout.p} on attention weights, which are never stored"
        return disturbed(module.attend, module.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence."""
        if not self.runs_ops(x) or x.dim() != 3:
            return super().forward(x)
        qkv = self.to_qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))
        temperature = self.temperature.exp().expand(self.heads)
        out = locality_attention(qkv, temperature, backend=self.stmeta_backend)
        return self.to_out(out.flatten(2))
