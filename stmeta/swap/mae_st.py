"""The masked autoencoder of Feichtenhofer et al. 2022 as facebookresearch/mae_st defines it.

- Encoder: only kept tokens are embedded, with their positions, in one op.
- Decoder: kept and mask tokens with their positions are laid down in one pass.
- Loss: `masked_patch_loss` of the frames to predict, which has the same definition.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stmeta.ops.video.masked_patch_loss import masked_patch_loss
from stmeta.swap import conv
from stmeta.swap._structure import Structural
from stmeta.swap._tokens import embed_kept, fill, invert

_PATCH_EMBED = ("5745750d415d568d",)


class MaskedAutoencoder(Structural):
    """Encoder, decoder and loss for a clip [B, 3, T, H, W]."""

    ops = "shifted_patch_embed of kept tokens, with positions; restore_tokens; masked_patch_loss"
    project = "facebookresearch/mae_st"
    digests: ClassVar[dict[str, tuple[str, ...]]] = {
        "forward": ("b8684551d2353bc0",),
        "forward_encoder": ("16261beae19e3455",),
        "forward_decoder": ("e2c823e8f98da8df",),
        "forward_loss": ("8182687b2a0665ee",),
        "patchify": ("e7ffa8fcd8c858c2",),
        "random_masking": ("12f37586f2a92c90",),
    }

    @classmethod
    def resembles(cls, module: nn.Module) -> bool:
        """Whether it has the steps of a masked autoencoder as methods."""
        return all(hasattr(type(module), name) for name in cls.digests) and (
            hasattr(module, "patch_embed") and hasattr(module, "mask_token")
        )

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why it must stay."""
        patches = module.patch_embed
        reason = cls.unread(module) or cls.unlike(patches, _PATCH_EMBED)
        if reason:
            return reason
        if patches.proj.in_channels != 3:
            return f"{patches.proj.in_channels} channels; its loss is for 3"
        return ""

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, predictions [B, N, F] and mask [B, N] of a clip [B, 3, T, H, W]."""
        if not self.runs_ops(imgs):
            return super().forward(imgs, mask_ratio)  # pyright: ignore
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        some_masked = latent.shape[1] < ids_restore.shape[1]
        if some_masked and not imgs.requires_grad and self._cuts(imgs):
            loss = self._loss(imgs, pred, mask.bool())
        else:
            loss = self.forward_loss(imgs, pred, mask)
        return loss, pred, mask

    def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Kept tokens [B, K, D], mask [B, N] (1 = masked) and the way back, int64 [B, N]."""
        if not self.runs_ops(x) or not self._covers(x):
            return super().forward_encoder(x, mask_ratio)  # pyright: ignore
        batch, count = len(x), self.patch_embed.num_patches
        # The same random numbers as the class that it stands in for.
        order = torch.rand(batch, count, device=x.device).argsort(dim=1)
        keep = int(count * (1 - mask_ratio))
        ids_keep = order[:, :keep].contiguous()
        mask = torch.ones(batch, count, device=x.device).scatter_(1, ids_keep, 0.0)
        first, table = self._positions("")
        kept = embed_kept(self.patch_embed.proj, x, ids_keep, table, self.stmeta_backend)
        if first is not None:
            token = (self.cls_token + first).expand(batch, -1, -1)
            kept = torch.cat([token, kept], dim=1)
        for block in self.blocks:
            kept = block(kept)
        kept = self.norm(kept)
        return kept[:, 1:] if first is not None else kept, mask, invert(order)

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predictions [B, N, F] from kept tokens [B, K, D]."""
        if not self.runs_ops(x, ids_restore):
            return super().forward_decoder(x, ids_restore)  # pyright: ignore
        t, side = self.patch_embed.t_grid_size, self.patch_embed.grid_size
        batch, count = ids_restore.shape
        if count != t * side * side:
            return super().forward_decoder(x, ids_restore)  # pyright: ignore
        x = self.decoder_embed(x)
        first, table = self._positions("decoder_")
        if first is not None:
            x = torch.cat([self.decoder_cls_token.expand(batch, -1, -1), x], dim=1)
            table = torch.cat([first[0], table])
        x = fill(x, self.mask_token, ids_restore, table, self.stmeta_backend)
        attention = getattr(self.decoder_blocks[0], "attn", None)
        by_time = getattr(attention, "requires_t_shape", False)
        if by_time:
            x = x.view(batch, t, side * side, -1)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_pred(self.decoder_norm(x))
        if by_time:
            x = x.view(batch, count, -1)
        return x[:, 1:] if first is not None else x

    def _positions(self, prefix: str) -> tuple[Tensor | None, Tensor]:
        """Position of the class token, [1, 1, D] or None, and those of the others, [N, D]."""

        def table(name: str) -> Any:
            return getattr(self, f"{prefix}pos_embed{name}")

        if self.sep_pos_embed:
            places = table("_temporal")[0][:, None] + table("_spatial")[0]
            return table("_class") if self.cls_embed else None, places.flatten(0, 1)
        if self.cls_embed:
            return table("")[:, :1], table("")[0, 1:]
        return None, table("")[0]

    def _covers(self, x: Tensor) -> bool:
        patches = self.patch_embed
        return (
            x.shape[2:] == (patches.frames, *patches.img_size)
            and conv.covers(patches.proj, x)
            and patches.num_patches == conv.count(patches.proj, x)
        )

    def _cuts(self, imgs: Tensor) -> bool:
        """Whether the clip can be cut into the tokens to predict, by its class's own methods."""
        patch, tubelet = self.patch_embed.patch_size[0], self.t_pred_patch_size
        height, width = imgs.shape[3:]
        frames: int = self.pred_t_dim
        return height == width and not height % patch and bool(tubelet) and not frames % tubelet

    def _loss(self, imgs: Tensor, pred: Tensor, masked: Tensor) -> Tensor:
        wanted: int = self.pred_t_dim
        frames = torch.linspace(0, imgs.shape[2] - 1, wanted).long().to(imgs.device)
        patch: int = self.patch_embed.patch_size[0]
        tubelet: int = self.t_pred_patch_size
        side = imgs.shape[4] // patch
        # Its unpatchify reads this.
        sizes = (len(imgs), wanted, *imgs.shape[3:], patch, tubelet)
        self.patch_info = (*sizes, wanted // tubelet, side, side)
        return masked_patch_loss(
            pred,
            imgs.index_select(2, frames),
            mask=masked,
            tubelet=tubelet,
            patch=patch,
            norm_pix=bool(self.norm_pix_loss),
            backend=self.stmeta_backend,
        )
