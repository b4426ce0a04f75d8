"""ViTMAE (He et al. 2021) as Hugging Face's transformers defines it.

- Embeddings: only kept tokens are embedded, with their positions, in one op.
- Decoder: class, kept and mask tokens with their positions are laid down in one pass.
- Loss: `masked_patch_loss`, which has the same definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.vit_mae import modeling_vit_mae as hf  # pyright: ignore
from transformers.utils.generic import can_return_tuple  # pyright: ignore

from stmeta.ops.video.masked_patch_loss import masked_patch_loss
from stmeta.swap import conv
from stmeta.swap._common import Fused, disturbed, known
from stmeta.swap._tokens import embed_kept, fill, invert

_VERSION = "this version of transformers defines it in another way than those we have read"
_EMBED = ("3a03de4eed666dbe", "41d371f8a61e6011", "1a43221a14fca36b")
_DECODER = ("70867e19460c5740",)
_PRETRAIN = ("d00ebed1d9e5c221", "d2b91ea7e17190b1")


class FusedViTMAEEmbeddings(Fused, hf.ViTMAEEmbeddings):
    """A class token and the kept patches of images [B, C, H, W], with positions."""

    ops = "shifted_patch_embed of kept tokens, with positions"

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why these embeddings must stay."""
        patches: Any = module.patch_embeddings
        if type(patches) is not hf.ViTMAEPatchEmbeddings:
            return f"patch_embeddings is a {type(patches).__name__}"
        functions = (
            hf.ViTMAEEmbeddings.forward,
            hf.ViTMAEEmbeddings.random_masking,
            hf.ViTMAEPatchEmbeddings.forward,
        )
        if not known(*functions, digests=_EMBED):
            return _VERSION
        if "random_masking" in module.__dict__:
            return "a random_masking of its own was put on the instance"
        name = "patch_embeddings.projection"
        return conv.why_not_inside(name, patches.projection, 2) or disturbed(patches)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, 1 + K, D], mask [B, N] (1 = masked) and the way back, int64 [B, N]."""
        if (
            interpolate_pos_encoding
            or not self.runs_ops(pixel_values, noise)
            or not self._covers(pixel_values, noise)
        ):
            return super().forward(pixel_values, noise, interpolate_pos_encoding)  # pyright: ignore
        batch, count = len(pixel_values), self.patch_embeddings.num_patches
        device = pixel_values.device
        # The same random numbers as the class that it stands in for.
        noise = torch.rand(batch, count, device=device) if noise is None else noise
        order = noise.argsort(dim=1).to(device)
        ids_keep = order[:, : int(count * (1 - self.config.mask_ratio))].contiguous()
        mask = torch.ones(batch, count, device=device).scatter_(1, ids_keep, 0.0)
        pos = self.position_embeddings
        kept = embed_kept(
            self.patch_embeddings.projection,
            pixel_values.unsqueeze(2),
            ids_keep,
            pos[0, 1:],
            self.stmeta_backend,
        )
        first = (self.cls_token + pos[:, :1]).expand(batch, -1, -1)
        return torch.cat([first, kept], dim=1), mask, invert(order)

    def _covers(self, pixel_values: Tensor, noise: Tensor | None) -> bool:
        patches = self.patch_embeddings
        projection, (height, width) = patches.projection, self.image_size
        patch = projection.kernel_size[0]
        return (
            pixel_values.shape[1:] == (patches.num_channels, height, width)
            and patches.num_patches == (height // patch) * (width // patch)
            and not (height % patch or width % patch)
            and (noise is None or noise.shape == (len(pixel_values), patches.num_patches))
            and conv.covers(projection, pixel_values)
        )


class FusedViTMAEDecoder(Fused, hf.ViTMAEDecoder):
    """Predictions for all patches from the encoder's tokens."""

    ops = "restore_tokens"

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why the assembly of the decoder's input must stay."""
        return "" if known(hf.ViTMAEDecoder.forward, digests=_DECODER) else _VERSION

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool = False
    ) -> Any:
        """Predict from [B, 1 + K, D]; ids_restore is int64 [B, N]."""
        table = self.decoder_pos_embed[0]
        if (
            interpolate_pos_encoding
            or not self.runs_ops(hidden_states, ids_restore)
            or len(table) != ids_restore.shape[1] + 1
        ):
            return super().forward(hidden_states, ids_restore, interpolate_pos_encoding)
        tokens = self.decoder_embed(hidden_states)
        ids_restore = ids_restore.to(tokens.device)
        tokens = fill(tokens, self.mask_token, ids_restore, table, self.stmeta_backend)
        for layer in self.decoder_layers:
            tokens = layer(tokens)
        logits = self.decoder_pred(self.decoder_norm(tokens))
        return hf.ViTMAEDecoderOutput(logits=logits[:, 1:, :])


# The name of the class is written into checkpoints and looked up by transformers: it must be the
# same.
class ViTMAEForPreTraining(Fused, hf.ViTMAEForPreTraining):
    """Encoder, decoder and loss; outputs are those of the class that it stands in for."""

    ops = "masked_patch_loss"

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why the loss must stay."""
        functions = (hf.ViTMAEForPreTraining.forward, hf.ViTMAEForPreTraining.patchify)
        if not known(*functions, digests=_PRETRAIN):
            return _VERSION
        if "patchify" in module.__dict__:
            return "a patchify of its own was put on the instance"
        if not isinstance(module.config.patch_size, int):
            return f"patch_size = {module.config.patch_size}; it must be a number"
        return ""

    def forward(
        self,
        pixel_values: Any = None,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Reconstruct masked patches of images [B, C, H, W]."""
        fits = self.runs_ops(pixel_values, noise) and self._covers(pixel_values)
        if interpolate_pos_encoding or not fits:
            return super().forward(
                pixel_values, noise, interpolate_pos_encoding, attention_mask, **kwargs
            )
        return self._fused(pixel_values, noise, attention_mask, **kwargs)

    def _covers(self, pixel_values: Any) -> bool:
        config: Any = self.config
        embeddings: Any = getattr(self.vit, "embeddings", None)
        if not isinstance(pixel_values, Tensor) or pixel_values.requires_grad:
            return False
        size = pixel_values.shape[-1]
        count = (size // config.patch_size) ** 2
        return (
            pixel_values.is_floating_point()
            and pixel_values.shape[1:] == (config.num_channels, size, size)
            and size % config.patch_size == 0
            and int(count * (1 - config.mask_ratio)) < count
            # These give masks of zeros and ones.
            and type(embeddings) in (hf.ViTMAEEmbeddings, FusedViTMAEEmbeddings)
            and not disturbed(embeddings)
        )

    @can_return_tuple
    def _fused(
        self,
        pixel_values: Tensor,
        noise: Tensor | None,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        outputs = self.vit(pixel_values, noise=noise, attention_mask=attention_mask, **kwargs)
        logits = self.decoder(outputs.last_hidden_state, outputs.ids_restore).logits
        config: Any = self.config
        loss = masked_patch_loss(
            logits,
            pixel_values.unsqueeze(2),
            mask=outputs.mask.bool(),
            tubelet=1,
            patch=config.patch_size,
            norm_pix=config.norm_pix_loss,
            backend=self.stmeta_backend,
        )
        return hf.ViTMAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
