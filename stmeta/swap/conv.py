"""Patch embeddings: convolutions of pixels whose kernel is their stride.

They lie in timm's PatchEmbed, Hugging Face's ViTMAE, ViViT, TimeSformer, V-JEPA 2 and most other
Transformers for images and video. As a Linear of patches they are `shifted_patch_embed` without
shifts. The result has the shape of the convolution's, with channels last in memory, so that the
`flatten(2).transpose(1, 2)` that follows copies nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from stmeta.nn.spt import compute_dtype
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed
from stmeta.swap._common import Fused, computes_alike, disturbed, held, plain_method

# More channels than these are features of a layer, not pixels.
PIXEL_CHANNELS = 4

Conv = nn.Conv2d | nn.Conv3d


class FusedConv3d(Fused, nn.Conv3d):
    """Cuts a video [B, C, T, H, W] into tubelets and embeds them: [B, D, T / t, H / p, W / p]."""

    ops = "shifted_patch_embed"
    plain_forward = plain_method(nn.Conv3d.forward)

    @classmethod
    def why_not(cls, module: nn.Conv3d) -> str:
        """Why the convolution is not a patch embedding that the op covers."""
        return why_not(module)

    def forward(self, input: Tensor) -> Tensor:
        """Embed patches, as the convolution does."""
        if not torch.jit.is_scripting():  # pyright: ignore
            if isinstance(input, fx.Proxy) and not _misfit(self):
                return patches_of(input, self.weight, self.bias, self.stmeta_backend)
            if self.runs_ops(input) and covers(self, input):  # apart: TorchScript reads all of it
                return _forward(self, input)
        return self.plain_forward(input)


class FusedConv2d(Fused, nn.Conv2d):
    """Cuts images [B, C, H, W] into patches and embeds them: [B, D, H / p, W / p]."""

    ops = "shifted_patch_embed"
    plain_forward = plain_method(nn.Conv2d.forward)

    @classmethod
    def why_not(cls, module: nn.Conv2d) -> str:
        """Why the convolution is not a patch embedding that the op covers."""
        return why_not(module)

    def forward(self, input: Tensor) -> Tensor:
        """Embed patches, as the convolution does."""
        if not torch.jit.is_scripting():  # pyright: ignore
            if isinstance(input, fx.Proxy) and not _misfit(self):
                return patches_of(input, self.weight, self.bias, self.stmeta_backend)
            if self.runs_ops(input) and covers(self, input):  # apart: TorchScript reads all of it
                return _forward(self, input)
        return self.plain_forward(input)


def candidate(conv: Conv) -> bool:
    """Whether a convolution looks like a patch embedding, fit or not."""
    strides = tuple(conv.stride)
    if max(strides) == 1:
        return False
    return conv.in_channels <= PIXEL_CHANNELS or tuple(conv.kernel_size) == strides


def why_not(conv: Conv) -> str:
    """Why a convolution is not a patch embedding that the op covers; "" if it is one."""
    return _misfit(conv) or held(conv.weight)


def _misfit(conv: Conv) -> str:
    kernel, stride = tuple(conv.kernel_size), tuple(conv.stride)
    if conv.in_channels > PIXEL_CHANNELS:
        return f"{conv.in_channels} input channels are features of a layer, not pixels"
    if kernel != stride:
        return f"kernel {kernel} is not the stride {stride}: patches overlap or leave gaps"
    if kernel[-1] != kernel[-2]:
        return f"patches of {kernel[-2]} x {kernel[-1]} pixels are not square"
    if conv.groups != 1 or any(d != 1 for d in conv.dilation):
        return f"groups = {conv.groups}, dilation = {tuple(conv.dilation)}; both must be 1"
    if conv.padding != "valid" and any(conv.padding):
        return f"padding = {conv.padding}; it must be 0"
    return ""


def why_not_inside(name: str, module: Any, axes: int) -> str:
    """Why a module inside a block is no convolution that ops stand in for; "" if it is one.

    Args:
        name: of the module, for the reason.
        module: whatever is there now.
        axes: 2 for images, 3 for clips.
    """
    kinds = (nn.Conv2d, FusedConv2d) if axes == 2 else (nn.Conv3d, FusedConv3d)
    if type(module) not in kinds:
        return f"{name} is a {type(module).__name__}"
    return why_not(module) or disturbed(module)


def covers(conv: Conv, x: Tensor) -> bool:
    """Whether the op stands in for the convolution of `x`."""
    kernel = conv.kernel_size
    return (
        x.dim() == len(kernel) + 2
        and x.shape[1] == conv.in_channels
        and all(size >= part for size, part in zip(x.shape[2:], kernel, strict=True))
        and computes_alike(x, conv.weight)
    )


def count(conv: Conv, x: Tensor) -> int:
    """How many patches it makes of `x`."""
    patches = 1  # in a loop: torch.compile reads no generator in math.prod
    for size, part in zip(x.shape[2:], conv.kernel_size, strict=True):
        patches *= size // part
    return patches


def embed(conv: Conv, video: Tensor, backend: str, **options: Any) -> Tensor:
    """Embed a video [B, C, T, H, W] with a convolution's weights: tokens [B, N or K, D].

    `options` are those of `shifted_patch_embed`: ids_keep and pos.
    """
    weight = conv.weight if conv.weight.dim() == 5 else conv.weight.unsqueeze(2)
    tubelet, patch, _ = (1, *conv.kernel_size)[-3:]
    return shifted_patch_embed(
        video,
        weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1),  # features (dt, dy, dx, c)
        conv.bias,
        tubelet=tubelet,
        patch=patch,
        shifts="none",
        dtype=compute_dtype(conv.weight),
        backend=backend,
        **options,
    )


@fx.wrap
def patches_of(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """The convolution as one step of a symbolic trace, which then gives what the block gives."""
    if not torch.jit.is_scripting():  # pyright: ignore
        return _step(x, weight, bias, backend)
    if weight.dim() == 5:
        return torch.conv3d(x, weight, bias, weight.shape[2:])
    return torch.conv2d(x, weight, bias, weight.shape[2:])


def _step(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    dim, channels, *kernel = weight.shape
    kind: Any = FusedConv3d if len(kernel) == 3 else FusedConv2d
    conv = kind(channels, dim, tuple(kernel), tuple(kernel), bias=bias is not None, device="meta")
    conv.stmeta_backend = backend
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return functional_call(conv, parameters, (x,))


def _forward(conv: FusedConv2d | FusedConv3d, x: Tensor) -> Tensor:
    video = x if x.dim() == 5 else x.unsqueeze(2)
    kernel = conv.kernel_size if x.dim() == 5 else (1, *conv.kernel_size)
    grid = [size // part for size, part in zip(video.shape[2:], kernel, strict=True)]
    t, h, w = (n * part for n, part in zip(grid, kernel, strict=True))
    # A convolution leaves out the border that fills no patch.
    tokens = embed(conv, video[:, :, :t, :h, :w], conv.stmeta_backend)
    return tokens.transpose(1, 2).unflatten(2, grid if x.dim() == 5 else grid[1:])
