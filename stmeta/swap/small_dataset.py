"""Shifted patches and locality attention (Lee et al. 2021) as vit-pytorch defines them.

Shifts are of one pixel, features of a token in the order of `patch_shift`, and one temperature,
kept as its logarithm, is shared by all heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from vit_pytorch import vit_for_small_dataset as theirs  # pyright: ignore

from stmeta.nn.spt import compute_dtype
from stmeta.ops.locality_attention import locality_attention
from stmeta.ops.shifted_patch_embed import shifted_patch_embed
from stmeta.swap._common import Fused, computes_alike, disturbed, known

_VERSION = "this version of vit-pytorch defines it in another way than those we have read"
_SPT = ("5303472e010d8e72",)
_LSA = ("dd6d914210894142",)


class FusedSPT(Fused, theirs.SPT):
    """Shifted patches of images [B, C, H, W] to tokens [B, N, D]."""

    ops = 'shifted_patch_embed, shifts="cardinal"'

    @classmethod
    def why_not(cls, module: theirs.SPT) -> str:
        """Why this tokenization must stay."""
        if not known(theirs.SPT.forward, digests=_SPT):
            return _VERSION
        kinds = [type(part) for part in module.to_patch_tokens]
        if [kind.__name__ for kind in kinds[:1]] != ["Rearrange"] or kinds[1:] != [
            nn.LayerNorm,
            nn.Linear,
        ]:
            return "to_patch_tokens is not Rearrange, LayerNorm, Linear"
        rearrange = module.to_patch_tokens[0]
        sizes = rearrange.axes_lengths
        if rearrange.pattern != "b c (h p1) (w p2) -> b (h w) (p1 p2 c)" or (
            sizes["p1"] != sizes["p2"]
        ):
            return f"patches are cut by {rearrange.pattern!r} with {sizes}"
        if module.to_patch_tokens[1].weight is None or module.to_patch_tokens[1].bias is None:
            return "its LayerNorm has no weight or no bias"
        return disturbed(module.to_patch_tokens, *module.to_patch_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        if not self._covers(x):
            return super().forward(x)
        rearrange, norm, linear = self.to_patch_tokens
        return shifted_patch_embed(
            x.unsqueeze(2),
            linear.weight,
            linear.bias,
            tubelet=1,
            patch=rearrange.axes_lengths["p1"],
            shifts="cardinal",
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            eps=norm.eps,
            dtype=compute_dtype(linear.weight),
            backend=self.stmeta_backend,
        )

    def _covers(self, x: Tensor) -> bool:
        parts = self.to_patch_tokens
        patch = parts[0].axes_lengths["p1"]
        return (
            x.dim() == 4
            and not (x.shape[2] % patch or x.shape[3] % patch)
            and 5 * x.shape[1] * patch**2 == parts[2].in_features
            and computes_alike(x, parts[2].weight)
            and not disturbed(parts, *parts)
        )


class FusedLSA(Fused, theirs.LSA):
    """Attention with a learned temperature and without oneself: [B, N, D] to [B, N, D]."""

    ops = "locality_attention"

    @classmethod
    def why_not(cls, module: theirs.LSA) -> str:
        """Why this attention must stay."""
        if not known(theirs.LSA.forward, digests=_LSA):
            return _VERSION
        if module.dropout.p > 0:
            return f"dropout of {module.dropout.p} on attention weights, which are never stored"
        return disturbed(module.attend, module.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence."""
        if x.dim() != 3 or self.dropout.p > 0 or disturbed(self.attend, self.dropout):
            return super().forward(x)
        qkv = self.to_qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))
        temperature = self.temperature.exp().expand(self.heads)
        out = locality_attention(qkv, temperature, backend=self.stmeta_backend)
        return self.to_out(out.flatten(2))
