"""VideoMAE (Tong et al. 2022) as MCG-NJU/VideoMAE defines it: encoder, and decoder's input.

Its loss lies in a training loop, not in a module, so it stays.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils import checkpoint

from stmeta.swap import conv
from stmeta.swap._structure import Structural, parameters_of
from stmeta.swap._tokens import assemble, embed_kept, same_number, visible_first

_PATCH_EMBED = ("d94e41dc7d8abfde",)


class Encoder(Structural):
    """Visible tokens of a clip: `forward(x, mask)` takes [B, C, T, H, W] and bool [B, N]."""

    ops = "shifted_patch_embed of visible tokens, with positions"
    project = "MCG-NJU/VideoMAE"
    digests: ClassVar[dict[str, tuple[str, ...]]] = {
        "forward_features": ("3490e249f1e08035", "71c971fea5d081c6")
    }

    @classmethod
    def resembles(cls, module: nn.Module) -> bool:
        """Whether it embeds patches of a clip and takes a mask."""
        return parameters_of(getattr(type(module), "forward_features", None)) == [
            *("self", "x", "mask")
        ] and all(hasattr(module, name) for name in ("patch_embed", "pos_embed", "blocks", "norm"))

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why it must stay."""
        return cls.unread(module) or cls.unlike(module.patch_embed, _PATCH_EMBED)

    def forward_features(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode visible tokens: [B, K, D]."""
        split = None
        if self.runs_ops(x, mask) and self._covers(x):
            split = visible_first(mask, len(x), self.pos_embed.shape[1])
        if split is None:
            return super().forward_features(x, mask)  # pyright: ignore
        order, keep = split
        proj = self.patch_embed.proj
        table = self.pos_embed[0].detach().to(x.device, conv.compute_dtype(proj.weight))
        ids_keep = order.narrow(1, 0, keep).contiguous()
        kept = embed_kept(proj, x, ids_keep, table, self.stmeta_backend)
        saving = getattr(self, "use_checkpoint", False)  # came later than the class
        for block in self.blocks:
            kept = checkpoint.checkpoint(block, kept) if saving else block(kept)
        return self.norm(kept)

    def _covers(self, x: Tensor) -> bool:
        patches = self.patch_embed
        if not conv.covers(patches.proj, x) or x.shape[3:] != tuple(patches.img_size):
            return False
        return self.pos_embed.shape[:2] == (1, conv.count(patches.proj, x)) and not any(
            size % part for size, part in zip(x.shape[2:], patches.proj.kernel_size, strict=True)
        )


class Autoencoder(Structural):
    """Predictions for masked tokens: `forward(x, mask)` takes [B, C, T, H, W] and bool [B, N]."""

    ops = "restore_tokens"
    project = "MCG-NJU/VideoMAE"
    digests: ClassVar[dict[str, tuple[str, ...]]] = {"forward": ("ebd6afd60f640dea",)}

    @classmethod
    def resembles(cls, module: nn.Module) -> bool:
        """Whether it has an encoder, a decoder and a mask token, and takes a mask."""
        names = ("encoder", "decoder", "encoder_to_decoder", "mask_token", "pos_embed")
        return parameters_of(type(module).forward) == ["self", "x", "mask"] and all(
            hasattr(module, name) for name in names
        )

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why it must stay."""
        return cls.unread(module)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct masked tokens: [B, N - K, F]."""
        split = None
        if self.runs_ops(x, mask) and x.dim() == 5 and x.is_floating_point():
            split = visible_first(mask, len(x), self.pos_embed.shape[1])
        if split is None:
            return super().forward(x, mask)  # pyright: ignore
        order, keep = split
        latent = self.encoder_to_decoder(self.encoder(x, mask))
        same_number(latent, keep)
        table = self.pos_embed[0].detach().to(x.device, x.dtype)
        full = assemble(latent, self.mask_token, order, table, self.stmeta_backend)
        return self.decoder(full, order.shape[1] - keep)
