"""Action classification: the encoder, pooled, with a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stmeta.models._encoder import VideoEncoderConfig
from stmeta.models.checkpoint import LoadReport, load_prefixed
from stmeta.ops.video.random_masking import MaskMode, random_masking


class VideoClassifier(nn.Module):
    """Encoder, pooling, LayerNorm, dropout, Linear.

    Args:
        config: of the encoder, which it builds; `config.dropout` also acts before the head.
        num_classes: logits.
        pool: "mean" of the patch tokens, or the "cls" token.
    """

    def __init__(
        self, config: VideoEncoderConfig, num_classes: int, *, pool: Literal["mean", "cls"] = "mean"
    ) -> None:
        super().__init__()
        if pool not in ("mean", "cls"):
            raise ValueError(f"VideoClassifier: pool must be 'mean' or 'cls', got {pool!r}")
        if pool == "cls" and not config.cls_token:
            raise ValueError(
                "VideoClassifier: pool='cls' needs config.cls_token = True; use pool='mean'"
            )
        self.config, self.num_classes, self.pool = config, num_classes, pool
        self.encoder = config.build()
        self.fc_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        video: Tensor,
        ids_keep: Tensor | None = None,
        *,
        mask_ratio: float = 0.0,
        mask_mode: MaskMode = "random",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Classify clips.

        Args:
            video: [B, C, T, H, W], uint8 or float in [0, 1].
            ids_keep: int64 [B, K], tokens to look at; None = all, or drawn with `mask_ratio`.
            mask_ratio: share of tokens to leave out.
            mask_mode: how they are drawn, see `random_masking`.
            generator: source of randomness of the draw.

        Returns:
            logits [B, num_classes].
        """
        if ids_keep is None and mask_ratio > 0:
            config = self.config.maskable()
            ids_keep = random_masking(
                video.shape[0],
                config.tokens,
                mask_ratio,
                generator,
                mask_mode,
                frames=config.grid[0],
                device=video.device,
            ).ids_keep
        return self.head(self.dropout(self.features(video, ids_keep)))

    def features(self, video: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """What the head sees, [B, D]: pooled tokens after a LayerNorm."""
        # Only encoders whose tokens may be left out take ids.
        x = self.encoder(video) if ids_keep is None else self.encoder(video, ids_keep)
        if self.pool == "cls":
            pooled = x[:, 0]
        else:
            pooled = (x[:, 1:] if self.config.cls_token else x).mean(dim=1)
        return self.fc_norm(pooled)

    def load_encoder(self, weights: Mapping[str, Tensor], *, strict: bool = True) -> LoadReport:
        """Take the encoder of a `VideoMAE` or `VideoClassifier` checkpoint (its state dict).

        The LayerNorm behind the pooling comes along where the checkpoint has one; decoders and
        heads are left out.

        Returns:
            The report about the encoder.

        Raises:
            ValueError: `strict`, and a name or a shape of the encoder differs.
        """
        report = load_prefixed(self.encoder, weights, "encoder.", strict=strict)
        if any(name.startswith("fc_norm.") for name in weights):
            load_prefixed(self.fc_norm, weights, "fc_norm.", strict=strict)
        return report

    def layer_of(self, name: str) -> tuple[int, int]:
        """Layer of a parameter and the last layer, see `SmallViT.layer_of`.

        Raises:
            ValueError: the encoder knows no layers.
        """
        layer_of = getattr(self.encoder, "layer_of", None)
        if layer_of is None:
            raise ValueError(
                f"VideoClassifier: {type(self.encoder).__name__} does not say which layer a "
                "parameter is of (`layer_of`); set layer_decay to 1"
            )
        return layer_of(name.removeprefix("encoder."))

    def no_decay(self) -> set[str]:
        """Names of tables and tokens, which take no weight decay."""
        no_decay: set[str] = getattr(self.encoder, "no_decay", set)()
        return {f"encoder.{name}" for name in no_decay}
