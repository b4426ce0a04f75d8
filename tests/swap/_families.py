"""One small model of every family that `fuse` knows, and what it takes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stmeta import fuse
from tests.swap._cases import load, randomise
from tests.swap._models import Steps, TwoParts, hide

HF = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
VIT = {"dim": 16, "heads": 2, "mlp_dim": 16, "num_classes": 3, "image_size": 16}
SIZES = {"image_patch_size": 4, "frames": 4, "frame_patch_size": 2}


def hf(name, **options):
    package = load("transformers")
    kind = name.split("For")[0].removesuffix("Model")
    config = getattr(package, f"{kind}Config")(**HF, **options)
    return getattr(package, name)(config)


def videomae(name, **options):
    frames = {"num_frames": 4, "tubelet_size": 2}
    return hf(f"VideoMAEFor{name}", **frames, **options)


def timm():
    embed = load("timm.layers.patch_embed").PatchEmbed(16, 4, 3, 10)
    return nn.Sequential(embed, load("timm.layers.patch_dropout").PatchDropout(0.5))


def mae():
    parts = {"decoder_dim": 12, "decoder_heads": 2, "decoder_dim_head": 8}
    encoder = load("vit_pytorch.vit_3d").ViT(**VIT, **SIZES, depth=1)
    return load("vit_pytorch.mae").MAE(encoder=encoder, **parts)


def vivit():
    depths = {"spatial_depth": 1, "temporal_depth": 1, "use_flash_attn": False}
    return load("vit_pytorch.vivit").ViViT(**VIT, **SIZES, **depths)


def small():
    return load("vit_pytorch.vit_for_small_dataset").ViT(**VIT, patch_size=4, depth=1)


IMAGE, VIDEO, FRAMES = (2, 3, 16, 16), (2, 3, 4, 16, 16), (2, 4, 3, 16, 16)

# Model, and shapes or tensors that it takes.
FAMILIES = {
    "timm": (timm, lambda: [torch.randn(IMAGE)]),
    "hf-videomae": (
        lambda: videomae("PreTraining", **DECODER),
        lambda: [torch.randn(FRAMES), hide(2, 32, 24)],
    ),
    "hf-videomae-classes": (
        lambda: videomae("VideoClassification", num_labels=3),
        lambda: [torch.randn(FRAMES)],
    ),
    "hf-vitmae": (lambda: hf("ViTMAEForPreTraining", **DECODER), lambda: [torch.randn(IMAGE)]),
    "hf-vivit": (
        lambda: hf("VivitForVideoClassification", num_frames=4, tubelet_size=[2, 4, 4]),
        lambda: [torch.randn(FRAMES)],
    ),
    "hf-timesformer": (
        lambda: hf("TimesformerForVideoClassification", num_frames=4),
        lambda: [torch.randn(FRAMES)],
    ),
    "vit-pytorch-small": (small, lambda: [torch.randn(IMAGE)]),
    "vit-pytorch-mae": (mae, lambda: [torch.randn(VIDEO)]),
    "vit-pytorch-vivit": (vivit, lambda: [torch.randn(VIDEO)]),
    "mae_st": (Steps, lambda: [torch.randn(2, 3, 8, 16, 16)]),
    "videomae": (TwoParts, lambda: [torch.randn(2, 3, 8, 16, 16), hide(2, 64, 50)]),
}


def numbers(result):
    if isinstance(result, torch.Tensor):
        return {"out": result}
    pairs = result.items() if hasattr(result, "items") else enumerate(result)
    return {str(k): v for k, v in pairs if isinstance(v, torch.Tensor) and v.is_floating_point()}


class Case:
    """A model, its fused twin, and the call on both."""

    def __init__(self, name):
        make, inputs = FAMILIES[name]
        self.model, self.inputs = randomise(make()).train(), inputs()
        self.twin = copy.deepcopy(self.model)
        self.report = fuse(self.twin, strict=True)

    def call(self, model):
        torch.manual_seed(3)  # both draw the same tokens
        return numbers(model(*self.inputs))
