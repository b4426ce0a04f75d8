"""Patch embeddings of vit-pytorch: a Sequential of Rearrange, LayerNorm, Linear and what follows.

They lie in its ViT, SimpleViT, ViViT and most of its other models for images and video. Rearrange,
LayerNorm and Linear are one `shifted_patch_embed` without shifts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stmeta.nn.spt import compute_dtype
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed
from stmeta.swap._common import Fused, computes_alike, disturbed, held, plain_method

_IMAGE, _CLIP = "b c (h p1) (w p2)", "b c (f pf) (h p1) (w p2)"

# What Rearrange does -> the axes of the result between batch and features.
_PATTERNS: dict[str, tuple[str, ...]] = {
    f"{_IMAGE} -> b (h w) (p1 p2 c)": ("fhw",),
    f"{_IMAGE} -> b h w (p1 p2 c)": ("h", "w"),
    f"{_CLIP} -> b (f h w) (pf p1 p2 c)": ("fhw",),
    f"{_CLIP} -> b f (h w) (pf p1 p2 c)": ("f", "hw"),
    f"{_CLIP} -> b f h w (pf p1 p2 c)": ("f", "h", "w"),
}


class Cut(NamedTuple):
    """How a Sequential cuts pixels into patches and embeds them."""

    tubelet: int
    patch: int
    axes: tuple[str, ...]
    """Of the result, between batch and features."""
    norm: nn.LayerNorm | None
    linear: nn.Linear
    rest: int
    """Index of the first module that comes after the Linear."""


class FusedPatches(Fused, nn.Sequential):
    """Cuts images [B, C, H, W] or clips [B, C, T, H, W] into patches and embeds them."""

    ops = "shifted_patch_embed"
    plain_forward = plain_method(nn.Sequential.forward)

    @classmethod
    def why_not(cls, module: nn.Sequential) -> str:
        """Why it is not a patch embedding that the op covers."""
        cut = read(module)
        return cut if isinstance(cut, str) else ""

    def forward(self, input: Tensor) -> Tensor:
        """Embed patches, then do what follows."""
        if not torch.jit.is_scripting():  # pyright: ignore
            cut = read(self)
            if not isinstance(cut, str) and self.runs_ops(input) and covers(cut, input):
                return _forward(self, cut, input)
        return self.plain_forward(input)


def _forward(module: FusedPatches, cut: Cut, x: Tensor) -> Tensor:
    video = x if x.dim() == 5 else x.unsqueeze(2)
    tokens = embed(cut, video, module.stmeta_backend)
    sizes = {
        "f": video.shape[2] // cut.tubelet,
        "h": video.shape[3] // cut.patch,
        "w": video.shape[4] // cut.patch,
    }
    if len(cut.axes) > 1:
        tokens = tokens.unflatten(1, [_product(axis, sizes) for axis in cut.axes])
    for following in list(module)[cut.rest :]:
        tokens = following(tokens)
    return tokens


def candidate(module: nn.Sequential) -> bool:
    """Whether a Sequential looks like a patch embedding, fit or not."""
    parts = list(module)
    if len(parts) < 2 or type(parts[0]).__name__ != "Rearrange":
        return False
    pattern = getattr(parts[0], "pattern", "")
    return (
        pattern.startswith("b c ")
        and "p1" in pattern
        and any(isinstance(part, nn.Linear) for part in parts[1:3])
    )


def modules_of(row: Any, name: str) -> list[nn.Module] | str:
    """Modules that a Sequential calls one after the other, or why it does something else."""
    if type(row) not in (nn.Sequential, FusedPatches):
        return f"{name} is a {type(row).__name__}"
    return disturbed(row) or list(row)


def read(modules: Iterable[nn.Module]) -> Cut | str:
    """How a row of modules cuts and embeds, or why it is no patch embedding that the op covers."""
    parts = list(modules)
    if not parts or not type(parts[0]).__module__.startswith("einops."):
        return "it does not begin with a Rearrange of einops"
    sizes: dict[str, Any] = getattr(parts[0], "axes_lengths", {})
    pattern = " ".join(getattr(parts[0], "pattern", "").split())
    axes = _PATTERNS.get(pattern)
    if axes is None:
        return f"patches are cut by {pattern!r}, an order of features that the op has not"
    p1, p2, tubelet = sizes.get("p1"), sizes.get("p2"), sizes.get("pf", 1)
    if not all(isinstance(size, int) for size in (p1, p2, tubelet)) or p1 != p2:
        return f"patches of {p1} x {p2} pixels are not square"
    norm = parts[1] if type(parts[1]) is nn.LayerNorm else None
    rest = 2 if norm is None else 3
    linear = parts[rest - 1] if len(parts) >= rest else None
    if type(linear) is not nn.Linear:
        return f"Rearrange is followed by {', '.join(type(p).__name__ for p in parts[1:3])}"
    if norm is not None and (norm.weight is None or norm.bias is None):
        return "its LayerNorm has no weight or no bias"
    if norm is not None and tuple(norm.normalized_shape) != (linear.in_features,):
        return f"its LayerNorm is over {tuple(norm.normalized_shape)}, not over a patch"
    reason = held(linear.weight) or disturbed(*parts[:rest])
    if reason:
        return reason
    assert isinstance(p1, int)
    return Cut(tubelet, p1, axes, norm, linear, rest)


def covers(cut: Cut, x: Tensor, copies: int = 1) -> bool:
    """Whether the op stands in for cutting and embedding `x`, [B, C, H, W] or [B, C, T, H, W].

    `copies` counts the shifts of the pixels in a patch.
    """
    weight, norm = cut.linear.weight, cut.norm
    frames = 1 if x.dim() == 4 else x.shape[2] if x.dim() == 5 else 0
    if frames == 0 or x.dim() != (4 if cut.tubelet == 1 and "f" not in cut.axes else 5):
        return False
    return (
        not (frames % cut.tubelet or x.shape[-2] % cut.patch or x.shape[-1] % cut.patch)
        and copies * x.shape[1] * cut.tubelet * cut.patch**2 == cut.linear.in_features
        and computes_alike(x, weight)
        and (norm is None or norm.weight.dtype == norm.bias.dtype == weight.dtype)
    )


def embed(cut: Cut, video: Tensor, backend: str, shifts: str = "none", **options: Any) -> Tensor:
    """Patches of [B, C, T, H, W] after LayerNorm and Linear: [B, N or K, D].

    `options` are those of `shifted_patch_embed`: ids_keep and pos.
    """
    norm, linear = cut.norm, cut.linear
    return shifted_patch_embed(
        video,
        linear.weight,
        linear.bias,
        tubelet=cut.tubelet,
        patch=cut.patch,
        shifts=shifts,
        norm_weight=None if norm is None else norm.weight,
        norm_bias=None if norm is None else norm.bias,
        eps=1e-5 if norm is None else norm.eps,
        dtype=compute_dtype(linear.weight),
        backend=backend,
        **options,
    )


def _product(axes: str, sizes: dict[str, int]) -> int:
    count = 1
    for axis in axes:
        count *= sizes[axis]
    return count
