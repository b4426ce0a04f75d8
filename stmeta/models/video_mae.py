"""Masked autoencoder for video (Feichtenhofer et al. 2022) on the small encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.models.small_vit import SmallViTConfig, make_blocks
from stmeta.nn.block import init_weights
from stmeta.nn.positions import SeparablePositions
from stmeta.ops.video.gather_tokens import gather_tokens
from stmeta.ops.video.masked_patch_loss import masked_patch_loss, patch_targets
from stmeta.ops.video.random_masking import Masking, MaskMode, random_masking
from stmeta.ops.video.restore_tokens import restore_tokens


class MAEOutput(NamedTuple):
    """What a masked autoencoder returns."""

    loss: Tensor
    """Scalar: mean squared error over the masked tokens; fp32, or fp64 for an fp64 clip."""
    pred: Tensor
    """[B, M, t*p*p*C], predictions for the masked tokens, in the order of `ids_masked`."""
    masking: Masking
    """Which tokens were kept and masked."""

    @property
    def mask(self) -> Tensor:
        """Which tokens were masked: bool [B, N]."""
        return self.masking.mask


class VideoMAE(nn.Module):
    """Hide most tokens of a clip, encode the rest, predict the pixels of the hidden ones.

    Args:
        config: shape of the encoder and, in `config.decoder`, of the decoder.
        norm_pix: targets are normalised within each token (unbiased variance, eps 1e-6).
    """

    def __init__(self, config: SmallViTConfig, *, norm_pix: bool = True) -> None:
        super().__init__()
        decoder = config.decoder
        self.config, self.norm_pix = config, norm_pix
        self.encoder = config.build()
        self.decoder_embed = nn.Linear(config.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.dim))
        self.decoder_pos = SeparablePositions(
            config.grid, decoder.dim, cls=config.cls_token, kind=config.positions
        )
        self.decoder_blocks = make_blocks(decoder, config)
        self.decoder_norm = nn.LayerNorm(decoder.dim)
        self.decoder_pred = nn.Linear(decoder.dim, config.pixels)
        for module in (
            self.decoder_embed,
            self.decoder_blocks,
            self.decoder_norm,
            self.decoder_pred,
        ):
            module.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        video: Tensor,
        masking: Masking | None = None,
        *,
        mask_ratio: float = 0.9,
        mask_mode: MaskMode = "random",
        generator: torch.Generator | None = None,
    ) -> MAEOutput:
        """Reconstruct masked tokens and compare them with the clip.

        Args:
            video: [B, C, T, H, W], uint8 or float in [0, 1].
            masking: the tokens to keep; None = drawn here.
            mask_ratio: share of masked tokens, when drawn.
            mask_mode: "random", "tube" or "frame", when drawn.
            generator: source of randomness, when drawn; a CPU generator works on every device.

        Raises:
            ValueError: sizes do not fit, or nothing is masked.
        """
        if masking is None:
            masking = self._draw(video, mask_ratio, mask_mode, generator)
        if masking.ids_masked.shape[1] == 0:
            raise ValueError(
                f"VideoMAE: mask_ratio = {mask_ratio} masks none of {self.config.tokens} tokens, "
                "so there is nothing to predict; raise it"
            )
        pred = self.decode(self.encoder(video, masking.ids_keep), masking)
        loss = masked_patch_loss(pred, video, ids=masking.ids_masked, **self._target())
        return MAEOutput(loss, pred, masking)

    def decode(self, latent: Tensor, masking: Masking) -> Tensor:
        """Predict pixels of the masked tokens, [B, M, t*p*p*C], from the encoder's output."""
        x = self.decoder_embed(latent)
        pos, ids_restore = self.decoder_pos.table(), masking.ids_restore
        count, keep = ids_restore.shape[1], masking.ids_keep.shape[1]
        # Token n among the masked ones: kept tokens come out behind all of those.
        ids_masked, among_masked = masking.ids_masked, (ids_restore - keep) % count
        if self.config.cls_token:  # one more kept token, in front
            cls = self.decoder_pos.cls
            first = pos.new_zeros(1, pos.shape[1]) if cls is None else cls[0]
            pos = torch.cat([first, pos])
            ids_restore = F.pad(ids_restore + 1, (1, 0))
            ids_masked, among_masked = ids_masked + 1, F.pad(among_masked, (1, 0), value=count)
        tokens = restore_tokens(x, self.mask_token, ids_restore, pos=pos)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        tokens = gather_tokens(tokens, ids_masked, ids_restore=among_masked)
        return self.decoder_pred(self.decoder_norm(tokens))

    def _target(self) -> dict[str, Any]:
        """What a prediction is compared with, as options of `masked_patch_loss`."""
        config = self.config
        return {
            "tubelet": config.tubelet,
            "patch": config.patch,
            "mean": config.mean,
            "std": config.std,
            "norm_pix": self.norm_pix,
        }

    @torch.no_grad()
    def reconstruct(
        self,
        video: Tensor,
        masking: Masking | None = None,
        *,
        mask_ratio: float = 0.9,
        mask_mode: MaskMode = "random",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make pictures of what the model fills in.

        With `norm_pix` a prediction has no brightness or contrast of its own, so it gets the mean
        and deviation of the true token.

        Args:
            video: [B, C, T, H, W], uint8 or float in [0, 1].
            masking: see `forward`, like the others.
            mask_ratio: share of masked tokens.
            mask_mode: "random", "tube" or "frame".
            generator: source of randomness.

        Returns:
            uint8 [B, C, T, H, W] each: the clip, the clip with masked tokens grey, and the clip
            with masked tokens predicted.
        """
        if masking is None:
            masking = self._draw(video, mask_ratio, mask_mode, generator)
        ids_masked = masking.ids_masked
        pred = self.decode(self.encoder(video, masking.ids_keep), masking).float()
        _, mean, deviation = patch_targets(video, ids=ids_masked, **self._target())
        filled = pred * deviation + mean  # back to normalised pixels
        channels = self.config.in_chans
        scale = torch.tensor(self.config.std, device=video.device) * 255
        offset = torch.tensor(self.config.mean, device=video.device) * 255
        filled = filled.unflatten(-1, (-1, channels)) * scale + offset
        filled = filled.round().clamp(0, 255).to(torch.uint8).flatten(2)
        original = (
            video if video.dtype == torch.uint8 else (video * 255).round().clamp(0, 255).byte()
        )
        patches = self._patchify(original)
        index = ids_masked[:, :, None].expand(-1, -1, patches.shape[-1])
        masked = patches.scatter(1, index, torch.full_like(filled, 128))
        rebuilt = patches.scatter(1, index, filled)
        return original, self._unpatchify(masked), self._unpatchify(rebuilt)

    def _draw(
        self, video: Tensor, ratio: float, mode: MaskMode, generator: torch.Generator | None
    ) -> Masking:
        return random_masking(
            video.shape[0],
            self.config.tokens,
            ratio,
            generator,
            mode,
            frames=self.config.grid[0],
            device=video.device,
        )

    def _patchify(self, video: Tensor) -> Tensor:
        t, p = self.config.tubelet, self.config.patch
        pattern = "b c (t dt) (h dy) (w dx) -> b (t h w) (dt dy dx c)"
        return rearrange(video, pattern, dt=t, dy=p, dx=p)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        (t, h, w), dt, p = self.config.grid, self.config.tubelet, self.config.patch
        pattern = "b (t h w) (dt dy dx c) -> b c (t dt) (h dy) (w dx)"
        return rearrange(tokens, pattern, t=t, h=h, w=w, dt=dt, dy=p, dx=p)

    def no_decay(self) -> set[str]:
        """Names of tables and tokens, which take no weight decay."""
        tables = {"mask_token", "decoder_pos.space", "decoder_pos.time", "decoder_pos.cls"}
        names = tables | {f"encoder.{name}" for name in self.encoder.no_decay()}
        return names & {name for name, _ in self.named_parameters()}
