"""Models, one file per paper, and the presets of their shapes."""

from stmeta.models._encoder import FeatureEncoderConfig, VideoEncoderConfig
from stmeta.models.checkpoint import LoadReport, read_weights
from stmeta.models.classifier import VideoClassifier
from stmeta.models.few_shot import FewShotClassifier, FewShotClassifierConfig
from stmeta.models.image_encoder import ImageEncoder, ImageEncoderConfig
from stmeta.models.sequence import SequenceModel
from stmeta.models.small_vit import PRESETS, DecoderConfig, SmallViT, SmallViTConfig
from stmeta.models.video_mae import MAEOutput, VideoMAE

__all__ = [
    "PRESETS",
    "DecoderConfig",
    "FeatureEncoderConfig",
    "FewShotClassifier",
    "FewShotClassifierConfig",
    "ImageEncoder",
    "ImageEncoderConfig",
    "LoadReport",
    "MAEOutput",
    "SequenceModel",
    "SmallViT",
    "SmallViTConfig",
    "VideoClassifier",
    "VideoEncoderConfig",
    "VideoMAE",
    "read_weights",
]
