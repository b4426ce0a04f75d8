"""VideoMAE (Tong et al. 2022) as Hugging Face's transformers defines it.

- Embeddings: only visible tokens are embedded, with their positions, in one op.
- Decoder: visible and mask tokens with their positions are laid down in one pass.
- Loss: targets are cut out of the video for masked tokens only. With `norm_pix_loss` the model
  normalises each channel of a token by itself and adds eps to the deviation, where
  `masked_patch_loss` takes the token as a whole and adds eps to the variance; so the targets are
  normalised here, by the model's definition. Without it the loss is `masked_patch_loss`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.videomae import modeling_videomae as hf  # pyright: ignore
from transformers.utils.constants import (  # pyright: ignore
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
)
from transformers.utils.generic import can_return_tuple  # pyright: ignore

from stmeta.nn.spt import autocast_dtype
from stmeta.ops.video.masked_patch_loss import masked_patch_loss
from stmeta.ops.video.patch_shift import patch_shift
from stmeta.swap import conv
from stmeta.swap._common import Fused, disturbed, known
from stmeta.swap._tokens import assemble, same_number, visible_first

_VERSION = "this version of transformers defines it in another way than those we have read"
_EMBED = ("14a75fcfa41f5fc0", "b2c04f66acc78511")
_PRETRAIN = ("7c5cd8ad4e0da1fb",)
_FLOAT32 = {  # on the CPU, whatever the default device where this is imported: it may be "meta"
    c: float(torch.tensor(c, dtype=torch.float32, device="cpu"))
    for c in (*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD)
}
_CACHED_ROWS = 256  # targets at a time: 1.5 MB of VideoMAE-base, which stay in L2 and L3


class FusedVideoMAEEmbeddings(Fused, hf.VideoMAEEmbeddings):
    """Patches of a video to tokens with positions; of the visible ones alone, where a mask is."""

    ops = "shifted_patch_embed of visible tokens, with positions"

    @classmethod
    def why_not(cls, module: hf.VideoMAEEmbeddings) -> str:
        """Why these embeddings must stay."""
        patches: Any = module.patch_embeddings
        if type(patches) is not hf.VideoMAEPatchEmbeddings:
            return f"patch_embeddings is a {type(patches).__name__}"
        if not known(
            hf.VideoMAEEmbeddings.forward, hf.VideoMAEPatchEmbeddings.forward, digests=_EMBED
        ):
            return _VERSION
        name = "patch_embeddings.projection"
        return conv.why_not_inside(name, patches.projection, 3) or disturbed(patches)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None) -> Tensor:
        """Embed [B, T, C, H, W]; bool_masked_pos [B, N] is True where a token is hidden."""
        if not self.runs_ops(pixel_values, bool_masked_pos) or not self._covers(pixel_values):
            return super().forward(pixel_values, bool_masked_pos)
        ids_keep = None
        if bool_masked_pos is not None:
            split = visible_first(bool_masked_pos, len(pixel_values), self.num_patches)
            if split is None:
                return super().forward(pixel_values, bool_masked_pos)
            order, keep = split
            ids_keep = order.narrow(1, 0, keep).contiguous()
        return conv.embed(
            self.patch_embeddings.projection,
            pixel_values.transpose(1, 2),
            self.stmeta_backend,
            ids_keep=ids_keep,
            pos=self.position_embeddings[0].detach().to(pixel_values.device),
        )

    def _covers(self, pixel_values: Tensor) -> bool:
        patches = self.patch_embeddings
        projection, (height, width) = patches.projection, patches.image_size
        tubelet, patch = projection.kernel_size[:2]
        times, rest = divmod(self.num_patches, (height // patch) * (width // patch))
        return (
            pixel_values.shape[1:] == (times * tubelet, patches.num_channels, height, width)
            and projection.in_channels == patches.num_channels
            and self.position_embeddings.shape == (1, self.num_patches, projection.out_channels)
            and not (height % patch or width % patch or rest)
            and conv.computes_alike(pixel_values, projection.weight)
        )


# The name of the class is written into checkpoints and looked up by transformers: it must be the
# same.
class VideoMAEForPreTraining(Fused, hf.VideoMAEForPreTraining):
    """Encoder, decoder and loss; outputs are those of the class that it stands in for."""

    ops = "restore_tokens"

    @classmethod
    def why_not(cls, module: hf.VideoMAEForPreTraining) -> str:
        """Why the assembly of the decoder's input and the loss must stay."""
        if not known(hf.VideoMAEForPreTraining.forward, digests=_PRETRAIN):
            return _VERSION
        if not isinstance(module.config.patch_size, int):
            return f"patch_size = {module.config.patch_size}; it must be a number"
        return disturbed()  # the model calls a module for the loss

    @classmethod
    def describe(cls, module: hf.VideoMAEForPreTraining) -> str:
        """Which ops assemble the decoder's input and make the loss."""
        loss = "patch_shift for targets" if module.config.norm_pix_loss else "masked_patch_loss"
        return f"{cls.ops}; {loss}"

    def forward(self, pixel_values: Tensor, bool_masked_pos: Any, **kwargs: Any) -> Any:
        """Reconstruct masked tokens of [B, T, C, H, W]; bool_masked_pos [B, N]: True = masked."""
        split = None
        if self.runs_ops(pixel_values, bool_masked_pos) and self._covers(pixel_values):
            tokens = self.position_embeddings.shape[1]
            split = visible_first(bool_masked_pos, len(pixel_values), tokens)
        if split is None:
            return super().forward(pixel_values, bool_masked_pos, **kwargs)
        return self._fused(pixel_values, bool_masked_pos, *split, **kwargs)

    def _covers(self, pixel_values: Tensor) -> bool:
        config = self.config
        return (
            pixel_values.dim() == 5
            and pixel_values.is_floating_point()
            and pixel_values.shape[2] == config.num_channels
            and (config.num_channels == 3 or config.norm_pix_loss)
        )

    @can_return_tuple
    def _fused(
        self, pixel_values: Tensor, bool_masked_pos: Tensor, order: Tensor, keep: int, **kwargs: Any
    ) -> Any:
        outputs = self.videomae(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        latent = self.encoder_to_decoder(outputs.last_hidden_state)
        same_number(latent, keep)
        table = self.position_embeddings[0].detach().to(pixel_values)
        tokens = assemble(latent, self.mask_token, order, table, self.stmeta_backend)
        logits = self.decoder(tokens, order.shape[1] - keep).logits
        return hf.VideoMAEForPreTrainingOutput(
            loss=self._loss(
                logits, pixel_values, order.narrow(1, keep, order.shape[1] - keep).contiguous()
            ),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: Tensor, pixel_values: Tensor, ids: Tensor) -> Tensor:
        config, kind = self.config, logits.device.type
        video = pixel_values.detach().transpose(1, 2)
        size: dict[str, Any] = {"tubelet": config.tubelet_size, "patch": config.patch_size}
        if config.norm_pix_loss:
            negative = self._negative_targets(video, ids, size).detach()  # no view of no_grad's
            if logits.dtype == torch.float64:
                negative = negative.double()
            # In the place of the targets: nothing else of their size is kept for the backward.
            rows = torch.linalg.vector_norm(negative.add_(logits), dim=-1)
            loss = rows.square().mean() / negative.shape[-1]
        else:  # pixels * std + mean, in the form (pixels - mean') / std'
            mean, std = _colours()
            loss = masked_patch_loss(
                logits,
                video,
                ids=ids,
                mean=[-m / s for m, s in zip(mean, std, strict=True)],
                std=[1 / s for s in std],
                norm_pix=False,
                backend=self.stmeta_backend,
                **size,
            )
        if autocast_dtype(kind) is not None:
            return loss.float()
        return loss.to(torch.promote_types(logits.dtype, pixel_values.dtype))

    @torch.no_grad()
    def _negative_targets(self, video: Tensor, ids: Tensor, size: dict[str, Any]) -> Tensor:
        """Pixels of masked tokens, normalised per token and channel, times -1: [B, M, t*p*p*C].

        A patch may be flat: what remains then is the rounding of its mean, divided by an eps of
        1e-6. So pixels and means are computed with the model's own operations in its order. The
        deviation need not be: it is made of differences from the mean, whose own mean is taken out.
        """
        exact = torch.promote_types(video.dtype, torch.float32)
        pixels = patch_shift(
            video, shifts="none", ids_keep=ids, dtype=exact, backend=self.stmeta_backend, **size
        )
        channels, features = video.shape[1], pixels.shape[2]
        scale = [
            torch.tensor(c, dtype=exact, device=video.device).repeat(features // 3)
            for c in (reversed(_colours()) if channels == 3 else ())
        ]
        rows = pixels.view(-1, features)
        whole = video.is_cuda or torch.compiler.is_compiling()
        for part in [rows] if whole else rows.split(_CACHED_ROWS):
            if scale:
                part.mul_(scale[0]).add_(scale[1])
            pixel = part.unflatten(1, (-1, channels))
            pixel.sub_(pixel.mean(dim=1, keepdim=True))
            part.div_(_deviation(part, channels).add_(1e-6).neg_().repeat(1, features // channels))
        return pixels


def _colours() -> tuple[list[float], list[float]]:
    """Mean and deviation of ImageNet's colours, as the model has them: float32 in float64 too."""
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if torch.get_default_dtype() == torch.float64:
        return mean, std
    return [_FLOAT32[c] for c in mean], [_FLOAT32[c] for c in std]


def _deviation(x: Tensor, channels: int) -> Tensor:
    """Unbiased deviation of each channel of rows [R, P*C] whose mean is nearly 0: [R, C]."""
    count = x.shape[1] // channels
    wide = math.gcd(count, 32) * channels  # sums of rows this wide fill a vector
    squares, sums = (
        values.unflatten(1, (-1, wide)).sum(1).unflatten(1, (-1, channels)).sum(1)
        for values in (x.square(), x)
    )
    variance = (squares - sums.square().div_(count)).div_(count - 1)
    return variance.clamp_(min=0).sqrt_()
