"""Video to tokens: shifted patch tokenization, or the plain patch embedding without shifts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stmeta.ops.video.patch_shift import shift_offsets
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed

Shifts = str | Sequence[tuple[int, int, int]]


class ShiftedPatchTokenization(nn.Module):
    """Shifted patch tokenization (Lee et al. 2021, eq. 3-5), tubelets instead of patches.

    Bytes of video become tokens in one op (normalise, shift, concatenate, cut into tubelets,
    LayerNorm), followed by a Linear. `shifts="none", norm=False` is the plain patch embedding.

    Args:
        dim: width D of a token.
        tubelet: frames per token.
        patch: pixels per token, in height and in width.
        in_chans: channels of the video.
        shifts: "diagonal" (half a patch, as the paper's authors), "cardinal" (one pixel), "none",
            or offsets (dt, dy, dx), the first of which is (0, 0, 0).
        temporal: add two shifts of half a tubelet, to the past and to the future.
        norm: LayerNorm over the concatenated pixels of a token.
        mean: subtracted from pixels in [0, 1], one per channel.
        std: divides the result, one per channel.
    """

    def __init__(
        self,
        dim: int,
        *,
        tubelet: int,
        patch: int,
        in_chans: int = 3,
        shifts: Shifts = "diagonal",
        temporal: bool = False,
        norm: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        offsets = (
            shift_offsets(shifts, tubelet, patch, temporal) if isinstance(shifts, str) else shifts
        )
        self.shifts = tuple((int(dt), int(dy), int(dx)) for dt, dy, dx in offsets)
        self.tubelet, self.patch, self.in_chans = tubelet, patch, in_chans
        self.mean = None if mean is None else tuple(float(m) for m in mean)
        self.std = None if std is None else tuple(float(s) for s in std)
        features = tubelet * patch * patch * len(self.shifts) * in_chans
        self.norm = nn.LayerNorm(features) if norm else None
        self.proj = nn.Linear(features, dim)

    def forward(
        self, video: Tensor, ids_keep: Tensor | None = None, pos: Tensor | None = None
    ) -> Tensor:
        """Embed a video.

        Args:
            video: [B, C, T, H, W], uint8 (divided by 255) or float (taken as it is); any strides.
            ids_keep: int64 [B, K], the tokens to compute; None = all N.
            pos: [N, D] positions to add, or None.

        Returns:
            [B, K or N, D] in the autocast dtype, or else the dtype of the weights.

        Raises:
            ValueError: the video has other channels, or shapes or dtypes do not fit (from
                `stmeta.ops.video.shifted_patch_embed`).
        """
        self.check(video)
        norm = self.norm
        return shifted_patch_embed(
            video,
            self.proj.weight,
            self.proj.bias,
            tubelet=self.tubelet,
            patch=self.patch,
            shifts=self.shifts,
            mean=self.mean,
            std=self.std,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=None if norm is None else norm.bias,
            eps=1e-5 if norm is None else norm.eps,
            ids_keep=ids_keep,
            pos=pos,
            dtype=compute_dtype(self.proj.weight),
        )

    def check(self, video: Tensor) -> None:
        """Raise ValueError unless the video has the layer's axes and channels."""
        self._require(video, {1: self.in_chans})

    def _require(self, video: Tensor, sizes: dict[int, int]) -> None:
        """Raise ValueError unless it has 5 axes, and these sizes at these axes."""
        shape = list(video.shape)
        if len(shape) == 5 and all(shape[axis] == size for axis, size in sizes.items()):
            return
        wanted = ", ".join(str(sizes.get(axis, "BCTHW"[axis])) for axis in range(5))
        message = f"{type(self).__name__}: video must be [B, C, T, H, W] = [{wanted}], got {shape}"
        if len(shape) == 4:
            raise ValueError(f"{message}; one clip is video[None]")
        moved = {2: "transpose(1, 2)", 4: "movedim(-1, 1)"}
        for axis, call in moved.items():
            if len(shape) == 5 and shape[axis] == self.in_chans != shape[1]:
                raise ValueError(f"{message}; are its channels axis {axis}? use video.{call}")
        raise ValueError(f"{message}; change the clip, or make the layer for this size")

    def extra_repr(self) -> str:
        """Fields that the child modules do not show."""
        sizes = f"in_chans={self.in_chans}, tubelet={self.tubelet}, patch={self.patch}"
        return f"{sizes}, shifts={self.shifts}"


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Dtype of autocast on a device type; None where it is off, or where there is none (meta)."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Dtype that a Linear with this weight computes in: that of autocast where it is on."""
    low = autocast_dtype(weight.device.type)
    return low if low is not None and weight.dtype == torch.float32 else weight.dtype
