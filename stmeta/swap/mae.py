"""The masked autoencoder (He et al. 2021) of vit-pytorch, around any of its encoders.

Only visible patches are embedded; visible and mask tokens with their positions are laid down in one
pass; the loss compares masked patches with the pixels without cutting these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vit_pytorch import mae as theirs  # pyright: ignore

from stmeta.nn.spt import autocast_dtype
from stmeta.ops.video.gather_tokens import gather_tokens
from stmeta.ops.video.masked_patch_loss import masked_patch_loss
from stmeta.swap import patches
from stmeta.swap._common import Fused, disturbed, held, known
from stmeta.swap._tokens import fill, invert

_VERSION = "this version of vit-pytorch defines it in another way than those we have read"
_FORWARD = ("6cdc8727fad1ea5d",)


class FusedMAE(Fused, theirs.MAE):
    """Loss of images [B, C, H, W], or of clips [B, C, T, H, W] with an encoder for video."""

    ops = "shifted_patch_embed of visible tokens; restore_tokens; gather_tokens; masked_patch_loss"

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why it must stay."""
        if not known(theirs.MAE.forward, digests=_FORWARD):
            return _VERSION
        cut = _cut(module)
        if isinstance(cut, str):
            return cut
        table = module.decoder_pos_emb
        if type(table) is not nn.Embedding or table.max_norm is not None or table.sparse:
            return f"decoder_pos_emb is {table}"
        pool = getattr(module.encoder, "pool", "")  # without it the class cannot run
        if pool == "cls" and module.encoder.pos_embedding.dim() != 3:
            return "its encoder's positions have no batch axis, which the class cannot slice"
        return held(table.weight) or disturbed(table)

    def forward(self, img: Tensor) -> Tensor:
        """Mask tokens, reconstruct them and compare them with the pixels."""
        cut = _cut(self)
        if isinstance(cut, str) or not self.runs_ops(img) or not self._covers(cut, img):
            return super().forward(img)
        video = img if img.dim() == 5 else img.unsqueeze(2)
        batch, count = len(img), _count(cut, video)
        hidden = int(self.masking_ratio * count)
        # The same random numbers as the class that it stands in for.
        shuffle = torch.rand(batch, count, device=img.device).argsort(dim=-1)
        masked, visible = shuffle[:, :hidden].contiguous(), shuffle[:, hidden:].contiguous()
        tokens = patches.embed(cut, video, self.stmeta_backend, ids_keep=visible)
        for module in list(self.patch_to_emb)[cut.rest - 1 :]:
            tokens = module(tokens)
        table = self._positions(count)
        if table is not None:
            tokens = tokens + functional.embedding(visible, table.to(tokens.device, tokens.dtype))
        latent = self.enc_to_dec(self.encoder.transformer(tokens))
        ids_restore = invert(torch.cat([visible, masked], dim=1))
        table = self.decoder_pos_emb.weight[:count]
        full = fill(latent, self.mask_token, ids_restore, table, self.stmeta_backend)
        # Where each token lies among the masked ones; visible ones come behind all of those.
        among = (ids_restore - (count - hidden)) % count
        decoded = gather_tokens(
            self.decoder(full), masked, ids_restore=among, backend=self.stmeta_backend
        )
        return masked_patch_loss(
            self.to_pixels(decoded),
            video,
            ids=masked,
            tubelet=cut.tubelet,
            patch=cut.patch,
            norm_pix=False,
            backend=self.stmeta_backend,
        )

    def _positions(self, count: int) -> Tensor | None:
        """The encoder's positions [N, D] without its class token; None if it has none here."""
        table, pool = self.encoder.pos_embedding, self.encoder.pool
        if pool == "cls":
            return table[0, 1 : count + 1]
        return table.reshape(-1, table.shape[-1]) if pool == "mean" else None

    def _covers(self, cut: patches.Cut, img: Tensor) -> bool:
        dtype = self.decoder_pos_emb.weight.dtype
        if img.requires_grad or not patches.covers(cut, img):
            return False
        count = _count(cut, img if img.dim() == 5 else img.unsqueeze(2))
        table = self._positions(count)
        return (
            0 < int(self.masking_ratio * count) < count
            and count <= self.decoder_pos_emb.num_embeddings
            and (table is None or len(table) == count)
            # It lays tokens down in a buffer of torch's default dtype.
            and self.mask_token.dtype == dtype == torch.get_default_dtype()
            and not (dtype == torch.float64 and autocast_dtype(img.device.type))
        )


def _cut(module: Any) -> patches.Cut | str:
    """How the pixels are cut and embedded, or why the ops do not cover that."""
    parts = patches.modules_of(module.patch_to_emb, "patch_to_emb")
    cut = parts if isinstance(parts, str) else patches.read([module.to_patch, *parts])
    if not isinstance(cut, str) and len(cut.axes) > 1:
        return f"its encoder's patches have {len(cut.axes)} axes; the class is for one"
    return cut


def _count(cut: patches.Cut, video: Tensor) -> int:
    _, _, frames, height, width = video.shape
    return frames // cut.tubelet * (height // cut.patch) * (width // cut.patch)
