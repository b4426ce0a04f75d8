"""What `pixel_ops` does to the pixels of clips on a GPU; see `pixel_host`, function by function.

Values are the same, but for `fetch`, where a GPU rounds its sums in an order of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def through(clip: Tensor, table: np.ndarray) -> Tensor:
    """Look each value up, in uint8 [256], or [3, 256] by channel."""
    places = clip.int()
    if table.ndim == 2:
        places += torch.arange(0, 768, 256, dtype=torch.int32, device=clip.device)
    values = torch.from_numpy(table).to(clip.device).flatten()
    return values.index_select(0, places.flatten()).view(clip.shape)


def extremes(clip: Tensor) -> list[tuple[int, int]]:
    """Least and largest value of each channel."""
    pixels = clip.reshape(-1, 3)
    low, high = torch.stack([pixels.amin(0), pixels.amax(0)]).tolist()
    return list(zip(low, high, strict=True))


def histogram(clip: Tensor) -> np.ndarray:
    """How often each channel has each value, int64 [3, 256]."""
    places = clip.int() + torch.arange(0, 768, 256, dtype=torch.int32, device=clip.device)
    return places.flatten().bincount(minlength=768).view(3, 256).cpu().numpy()


def mean_grey(clip: Tensor) -> float:
    """Mean brightness."""
    return float(_grey(clip).mean(dtype=torch.float64))


def mean_colour(clip: Tensor) -> np.ndarray:
    """Mean of each channel, float64 [3]."""
    return clip.mean((0, 1, 2), dtype=torch.float64).cpu().numpy()


def saturation(clip: Tensor, factor: float) -> Tensor:
    """Blend each pixel with its grey."""
    return _blend(_grey(clip)[..., None], clip, factor)


def sharpness(clip: Tensor, factor: float) -> Tensor:
    """Blend with a smoothed clip."""
    if min(clip.shape[1:3]) < 3:
        return clip.clone()
    wide = clip.int()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = wide.clone()
    smooth[:, 1:-1, 1:-1] = (box + 4 * wide[:, 1:-1, 1:-1] + 6) // 13
    return _blend(smooth, clip, factor)


def fetch(clip: Tensor, places: np.ndarray, inside: np.ndarray, fill: int) -> Tensor:
    """Fetch each pixel from a place, bilinear; see `pixel_host.fetch`."""
    frames, height, width, _ = clip.shape
    planes = clip.permute(0, 3, 1, 2).reshape(1, frames * 3, height, width)
    moved = F.grid_sample(
        planes.float(),
        torch.from_numpy(places[None]).to(clip.device),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    pixels = moved.round().byte().view(frames, 3, height, width).permute(0, 2, 3, 1)
    kept = torch.from_numpy(inside[:, :, None]).to(clip.device)
    return pixels.where(kept, fill).contiguous()


def write(part: Tensor, values: np.ndarray) -> None:
    """Write uint8 values into a part of a clip."""
    part.copy_(torch.from_numpy(values))


def _grey(clip: Tensor) -> Tensor:
    """Brightness of each pixel (ITU-R BT.601), int32 [T, H, W]."""
    red, green, blue = clip.int().unbind(-1)
    return red * 19595 + green * 38470 + blue * 7471 + 32768 >> 16


def _blend(base: Tensor, clip: Tensor, factor: float) -> Tensor:
    start = base.float()
    return (start + (clip - start) * factor).round().clamp(0, 255).byte()
