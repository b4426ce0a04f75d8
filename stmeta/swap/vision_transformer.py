"""timm's VisionTransformer with patch dropout: only the tokens that stay are embedded.

timm embeds all patches of an image, adds positions and then drops most tokens again. Which ones is
drawn first here, so that embedding costs what is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import patch_dropout as theirs  # pyright: ignore
from timm.layers import patch_embed as embeds  # pyright: ignore
from timm.models import vision_transformer as timm  # pyright: ignore
from torch import Tensor, nn

from stmeta.swap import conv
from stmeta.swap._common import Fused, disturbed, known, plain_method
from stmeta.swap._tokens import embed_kept
from stmeta.swap.patch_dropout import VERSION, FusedPatchDropout, draw_kept
from stmeta.swap.patch_dropout import why_not as why_not_dropout

_TEXT = ("4feef0aa3f6da7d8", "960623813e153841", "4bf768573cbea288")


class FusedVisionTransformer(Fused, timm.VisionTransformer):
    """Classifies images [B, C, H, W]; in training a share of the patches is left out."""

    ops = "shifted_patch_embed of kept tokens, with positions"
    plain_forward_features = plain_method(timm.VisionTransformer.forward_features)

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why patches must be embedded before they are dropped."""
        functions = (
            timm.VisionTransformer.forward_features,
            timm.VisionTransformer._pos_embed,
            embeds.PatchEmbed.forward,
        )
        if not known(*functions, digests=_TEXT):
            return VERSION
        return why_not_dropout() or _why_not(module)

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens [B, P + K, D] behind the last block; P tokens stand in front of the patches'."""
        if not torch.jit.is_scripting():  # pyright: ignore
            special = attn_mask is not None or is_causal or self.grad_checkpointing
            if not special and self.training and self.runs_ops(x) and _covers(self, x):
                return _features(self, x)
        return self.plain_forward_features(x, attn_mask=attn_mask, is_causal=is_causal)


def _features(model: Any, x: Tensor) -> Tensor:
    embed, drop, table = model.patch_embed, model.patch_drop, model.pos_embed[0]
    ids_keep = draw_kept(drop, len(x), embed.num_patches, x.device)
    first = [t for t in (model.cls_token, model.reg_token) if t is not None]
    of_first = table[: 0 if model.no_embed_class else model.num_prefix_tokens]
    kept = embed_kept(
        embed.proj, x.unsqueeze(2), ids_keep, table[len(of_first) :], model.stmeta_backend
    )
    if first:
        front = torch.cat(first, 1)
        front = front if model.no_embed_class else front + of_first
        kept = torch.cat([front.expand(len(x), -1, -1), kept], 1)
    return model.norm(model.blocks(model.norm_pre(kept)))


def _covers(model: Any, x: Tensor) -> bool:
    embed = model.patch_embed
    return (
        model.patch_drop.prob > 0
        and x.shape[1:] == (embed.proj.in_channels, *embed.img_size)
        and embed.proj.kernel_size == tuple(embed.patch_size)
        and conv.covers(embed.proj, x)
    )


def _why_not(module: Any) -> str:
    embed: Any = module.patch_embed
    drop = module.pos_drop
    if type(embed) is not embeds.PatchEmbed:
        return f"patch_embed is a {type(embed).__name__}"
    if type(module.patch_drop) not in (theirs.PatchDropout, FusedPatchDropout):
        return f"patch_drop is a {type(module.patch_drop).__name__}"
    if type(drop) not in (nn.Identity, nn.Dropout):
        return f"pos_drop is a {type(drop).__name__}"
    for holds, reason in (
        ("_pos_embed" not in module.__dict__, "a _pos_embed of its own was put on the instance"),
        (type(embed.norm) is nn.Identity, "patch_embed.norm sees all tokens"),
        (embed.flatten and embed.img_size is not None, "its patches are not laid out as tokens"),
        (module.pos_embed is not None, "it has no positions"),
        (not module.dynamic_img_size, "dynamic_img_size = True; positions are interpolated"),
        (type(drop) is nn.Identity or drop.p == 0, "pos_drop draws for all tokens"),
        (
            module.patch_drop.num_prefix_tokens == module.num_prefix_tokens,
            "patch_drop counts other tokens in front than the model",
        ),
    ):
        if not holds:
            return reason
    (height, width), (down, across) = module.patch_embed.img_size, module.patch_embed.patch_size
    if height % down or width % across:
        return f"images of {height} x {width} pixels are no whole number of {down} x {across}"
    reason = conv.why_not_inside("patch_embed.proj", embed.proj, 2)
    # Modules whose forward is not called.
    return reason or disturbed(embed, embed.norm, drop, module.patch_drop)
