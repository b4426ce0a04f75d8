"""What an encoder is to the models on top of it, and what its config builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Encoder(Protocol):
    """Turns single inputs into features; a module that a `FeatureEncoderConfig` builds."""

    out_dim: int
    """Width D of the features."""

    def __call__(self, x: Tensor) -> Tensor:
        """Features [..., D] of inputs [..., in_dim]."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeatureEncoderConfig(ABC):
    """Shape of an encoder of single inputs, such as images. It builds what it configures."""

    @abstractmethod
    def build(self, in_dim: int) -> Any:
        """Make the encoder, an `Encoder` and a `torch.nn.Module`, for inputs [..., in_dim]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig(ABC):
    """What every video encoder has in its shape. It builds what it configures.

    The encoder is a `torch.nn.Module` that takes clips, uint8 or float [B, C, T, H, W], and gives
    [B, N, D]: N places of a clip, which a classifier averages. One whose tokens may be left out
    takes `ids_keep` too, and its config is `maskable`. Two methods are used where an encoder has
    them: `layer_of(name)` for learning rates by layer, and `no_decay()`.
    """

    image_size: int = 64
    """Height and width in pixels."""
    frames: int = 16
    """Frames per clip."""
    in_chans: int = 3
    dim: int = 192
    """Width D of what comes out."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    dropout: float = 0.0
    """In attention outputs and MLPs, and before the head of a classifier."""
    cls_token: bool = False
    """Whether a class token comes before the N places: [B, 1 + N, D]."""

    @abstractmethod
    def build(self) -> Any:
        """Make the encoder."""
        raise NotImplementedError

    def maskable(self) -> Any:
        """This config, where tokens of its clips can be left out: it has `grid` and `tokens`.

        Raises:
            ValueError: the encoder has no tokens that could be left out.
        """
        raise ValueError(
            f"{type(self).__name__}: its encoder has no tokens to leave out; set mask_ratio to 0, "
            "and leave masked pretraining out (--stage)"
        )
