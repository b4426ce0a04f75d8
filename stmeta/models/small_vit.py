"""A Vision Transformer for small video data sets (Lee et al. 2021, with tubelets)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stmeta.models._encoder import VideoEncoderConfig
from stmeta.nn.block import Block, init_weights
from stmeta.nn.positions import PositionKind, SeparablePositions
from stmeta.nn.spt import ShiftedPatchTokenization, Shifts


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The light Transformer that `VideoMAE` puts behind the encoder for pretraining."""

    dim: int = 96
    depth: int = 3
    heads: int = 16
    head_dim: int = 16
    mlp_ratio: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SmallViTConfig(VideoEncoderConfig):
    """Shape of a video encoder. The defaults are the preset `small_64`."""

    tubelet: int = 2
    """Frames per token."""
    patch: int = 8
    """Pixels per token, in height and in width."""
    depth: int = 9
    """Transformer blocks."""
    heads: int = 12
    head_dim: int = 16
    mlp_ratio: float = 2.0
    qkv_bias: bool = False
    shifts: Shifts = "diagonal"
    """Shifted patch tokenization: "diagonal", "cardinal", "none", or offsets (dt, dy, dx)."""
    temporal_shifts: bool = False
    """Two more shifts, half a tubelet to the past and to the future."""
    patch_norm: bool = True
    """LayerNorm over the pixels of a token before the Linear."""
    lsa: bool = True
    """Locality self-attention: learned temperature, masked diagonal."""
    positions: PositionKind = "learned"
    cls_token: bool = True
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    """Subtracted from pixels in [0, 1]."""
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Used by `VideoMAE` only."""

    def __post_init__(self) -> None:
        for name, size, part in (
            ("image_size", self.image_size, self.patch),
            ("frames", self.frames, self.tubelet),
        ):
            if part < 1 or size < part or size % part:
                unit = "patch" if name == "image_size" else "tubelet"
                raise ValueError(
                    f"SmallViTConfig: {name} must be a multiple of {unit} = {part}, got {size}"
                )

    def build(self) -> SmallViT:
        """Make the encoder."""
        return SmallViT(self)

    def maskable(self) -> SmallViTConfig:
        """This config: its tokens can be left out."""
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens in time, height and width."""
        side = self.image_size // self.patch
        return (self.frames // self.tubelet, side, side)

    @property
    def tokens(self) -> int:
        """Tokens N per clip, without the class token."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def pixels(self) -> int:
        """Values per token before the shifts: tubelet * patch * patch * in_chans."""
        return self.tubelet * self.patch**2 * self.in_chans


def _imagenet(dim: int, depth: int, heads: int, decoder: DecoderConfig) -> SmallViTConfig:
    return SmallViTConfig(
        image_size=224,
        patch=16,
        dim=dim,
        depth=depth,
        heads=heads,
        head_dim=dim // heads,
        mlp_ratio=4.0,
        qkv_bias=True,
        shifts="none",
        patch_norm=False,
        lsa=False,
        decoder=decoder,
    )


PRESETS: dict[str, SmallViTConfig] = {
    # For trying things out on a laptop: 72 tokens. A tubelet of 4 frames shows a token which way
    # things move within it; with 2 frames the motion classes of the demo take far longer to learn.
    "tiny": SmallViTConfig(
        image_size=48,
        frames=8,
        tubelet=4,
        patch=8,
        dim=96,
        depth=4,
        heads=3,
        head_dim=32,
        decoder=DecoderConfig(dim=64, depth=2, heads=2, head_dim=32),
    ),
    # 512 tokens; 3,055,404 parameters, 3,526,332 with the decoder.
    "small_64": SmallViTConfig(),
    # The paper's backbone (Waseem and Muthukumar 2023, section 4.1): images, plain patches, fixed
    # positions. 3,109,008 parameters with decoder, class and mask tokens not counted.
    "paper_small_32": SmallViTConfig(
        image_size=32,
        frames=1,
        tubelet=1,
        patch=4,
        shifts="none",
        patch_norm=False,
        lsa=False,
        positions="sincos",
    ),
    # The same on 16 frames: 3,123,168 parameters, all counted.
    "paper_small_32_video": SmallViTConfig(
        image_size=32,
        patch=4,
        shifts="none",
        patch_norm=False,
        lsa=False,
        positions="sincos",
    ),
    # Full size (Feichtenhofer et al. 2022, table 1).
    "vit_base": _imagenet(
        768, 12, 12, DecoderConfig(dim=384, depth=4, heads=6, head_dim=64, mlp_ratio=4.0)
    ),
    "vit_large": _imagenet(
        1024, 24, 16, DecoderConfig(dim=512, depth=4, heads=16, head_dim=32, mlp_ratio=4.0)
    ),
}


class SmallViT(nn.Module):
    """Encoder: tokens of a clip, all of them or only those that a mask keeps.

    Masking comes before embedding: tokens that are not kept are never computed.
    """

    def __init__(self, config: SmallViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = ShiftedPatchTokenization(
            config.dim,
            tubelet=config.tubelet,
            patch=config.patch,
            in_chans=config.in_chans,
            shifts=config.shifts,
            temporal=config.temporal_shifts,
            norm=config.patch_norm,
            mean=config.mean,
            std=config.std,
        )
        self.pos_embed = SeparablePositions(
            config.grid, config.dim, cls=config.cls_token, kind=config.positions
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim)) if config.cls_token else None
        self.blocks = make_blocks(config, config, config.drop_path)
        self.norm = nn.LayerNorm(config.dim)
        self.apply(init_weights)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, video: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode a batch of clips.

        Args:
            video: [B, C, T, H, W], uint8 or float in [0, 1]; normalised here.
            ids_keep: int64 [B, K], tokens to look at, in the order (t h w); None = all N.

        Returns:
            [B, K or N, D], with the class token in front where there is one: [B, 1 + K, D].

        Raises:
            ValueError: the clip is not of the size in the config.
        """
        self._check(video)
        x = self.patch_embed(video, ids_keep, self.pos_embed.table())
        if self.cls_token is not None:
            cls = (
                self.cls_token
                if self.pos_embed.cls is None
                else self.cls_token + self.pos_embed.cls
            )
            x = torch.cat([cls.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _check(self, video: Tensor) -> None:
        config = self.config
        want = (config.in_chans, config.frames, config.image_size, config.image_size)
        if video.ndim != 5 or tuple(video.shape[1:]) != want:
            swapped = video.ndim == 5 and tuple(video.shape[1:]) == (want[1], want[0], *want[2:])
            remedy = (
                "swap axes 1 and 2 (`video.transpose(1, 2)`)"
                if swapped
                else "change the clip, or image_size, frames and in_chans of the config"
            )
            raise ValueError(
                f"SmallViT: video must be [B, C, T, H, W] = [B, {', '.join(map(str, want))}], "
                f"got {list(video.shape)}; {remedy}"
            )

    def layer_of(self, name: str) -> tuple[int, int]:
        """Layer of a parameter and the last layer, for layer-wise learning rates.

        Patches, positions and the class token are layer 0, block i is layer i + 1, all else is
        the last layer, depth + 1 (Feichtenhofer et al. 2022, fine-tuning).
        """
        last = self.config.depth + 1
        if name.startswith(("patch_embed.", "pos_embed.", "cls_token")):
            return 0, last
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1, last
        return last, last

    def no_decay(self) -> set[str]:
        """Names of tables and tokens, which take no weight decay."""
        names = {"cls_token", "pos_embed.space", "pos_embed.time", "pos_embed.cls"}
        return names & {name for name, _ in self.named_parameters()}


def make_blocks(
    shape: SmallViTConfig | DecoderConfig, encoder: SmallViTConfig, drop_path: float = 0.0
) -> nn.ModuleList:
    """Stack the blocks of an encoder or a decoder; both share the encoder's kind of attention."""
    return nn.ModuleList(
        Block(
            shape.dim,
            shape.heads,
            shape.head_dim,
            mlp_ratio=shape.mlp_ratio,
            qkv_bias=encoder.qkv_bias,
            locality=encoder.lsa,
            dropout=encoder.dropout,
            drop_path=drop_path * i / max(1, shape.depth - 1),
        )
        for i in range(shape.depth)
    )
