"""Models, one file per paper, and the presets of their shapes."""

from stmeta.models.checkpoint import LoadReport, read_weights
from stmeta.models.classifier import VideoClassifier
from stmeta.models.small_vit import PRESETS, DecoderConfig, SmallViT, SmallViTConfig
from stmeta.models.video_mae import MAEOutput, VideoMAE

__all__ = [
    "PRESETS",
    "DecoderConfig",
    "LoadReport",
    "MAEOutput",
    "SmallViT",
    "SmallViTConfig",
    "VideoClassifier",
    "VideoMAE",
    "read_weights",
]
