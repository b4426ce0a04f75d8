"""Embeddings of video with timm's names, and the tokens that stand for what is masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stmeta.nn.spt import ShiftedPatchTokenization, Shifts
from stmeta.ops.video.restore_tokens import restore_tokens


class ShiftedPatchEmbed(ShiftedPatchTokenization):
    """Shifted patches of a clip of fixed size to tokens (Lee et al. 2021, eq. 3-5).

    `forward(video, ids_keep=None, pos=None)` takes [B, C, T, H, W], uint8 or float, and returns
    [B, N or K, D]; with `ids_keep` [B, K] only those tokens are computed.

    Args:
        img_size: pixels of a frame, in height and in width.
        patch_size: pixels of a token.
        num_frames: frames T of a clip.
        tubelet_size: frames of a token.
        in_chans: channels C.
        embed_dim: width D of a token.
        shifts: "diagonal", "cardinal", "none", or offsets (dt, dy, dx), the first (0, 0, 0).
        temporal: add two shifts of half a tubelet, to the past and to the future.
        norm: LayerNorm over the pixels of a token.
        mean: subtracted from pixels in [0, 1], one per channel.
        std: divides the result, one per channel.

    Raises:
        ValueError: sizes are not multiples of the token's; in `forward`, a clip of another size.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        num_frames: int = 16,
        tubelet_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        shifts: Shifts = "diagonal",
        temporal: bool = False,
        norm: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        name = type(self).__name__
        if patch_size < 1 or img_size < 1 or img_size % patch_size:
            raise ValueError(
                f"{name}: img_size must be a multiple of patch_size = {patch_size}, got {img_size}"
            )
        if tubelet_size < 1 or num_frames < 1 or num_frames % tubelet_size:
            raise ValueError(
                f"{name}: num_frames must be a multiple of tubelet_size = {tubelet_size}, "
                f"got {num_frames}"
            )
        super().__init__(
            embed_dim,
            tubelet=tubelet_size,
            patch=patch_size,
            in_chans=in_chans,
            shifts=shifts,
            temporal=temporal,
            norm=norm,
            mean=mean,
            std=std,
        )
        self.img_size, self.num_frames = img_size, num_frames
        side = img_size // patch_size
        self.grid_size = (num_frames // tubelet_size, side, side)
        self.num_patches = self.grid_size[0] * side * side

    def check(self, video: Tensor) -> None:
        """Raise ValueError unless the clip is of the size that the layer was made for."""
        sizes = {1: self.in_chans, 2: self.num_frames, 3: self.img_size, 4: self.img_size}
        self._require(video, sizes)


class TubeletEmbed(ShiftedPatchEmbed):
    """Tubelets of a clip to tokens by one Linear (Arnab et al. 2021, section 3.2): no shifts.

    Arguments are those of `ShiftedPatchEmbed` without shifts and norm. It computes what a Conv3d
    does whose kernel is its stride; `load_conv` takes over the weights of one.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        num_frames: int = 16,
        tubelet_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            *(img_size, patch_size, num_frames, tubelet_size, in_chans, embed_dim),
            shifts="none",
            norm=False,
            mean=mean,
            std=std,
        )

    @torch.no_grad()
    def load_conv(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Copy the weights of a Conv3d.

        Args:
            weight: [D, C, t, p, p].
            bias: [D]; None = zeros.

        Raises:
            ValueError: the shape is another one.
        """
        dim, features = self.proj.weight.shape
        part = (self.tubelet, self.patch, self.patch)
        want = (dim, features // (part[0] * part[1] * part[2]), *part)
        if tuple(weight.shape) != want:
            raise ValueError(
                f"TubeletEmbed: weight must be [D, C, t, p, p] = {list(want)}, "
                f"got {list(weight.shape)}"
            )
        self.proj.weight.copy_(weight.permute(0, 2, 3, 4, 1).flatten(1))
        if bias is None:
            self.proj.bias.zero_()
        else:
            self.proj.bias.copy_(bias)


class MaskedTokens(nn.Module):
    """Full sequence of a masked autoencoder's decoder (He et al. 2021, section 3).

    Args:
        dim: width D of a token of the decoder.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, ids_restore: Tensor, pos: Tensor | None = None) -> Tensor:
        """Put visible tokens back to their places among mask tokens, and add positions.

        Args:
            latent: [B, K, D], visible tokens in the order of `Masking.ids_keep`.
            ids_restore: int64 [B, N], `Masking.ids_restore`.
            pos: [N, D] or None.

        Returns:
            [B, N, D], dtype of `latent`.

        Raises:
            ValueError: shapes do not fit (from `stmeta.ops.video.restore_tokens`).
        """
        return restore_tokens(latent, self.mask_token, ids_restore, pos=pos)
