"""Models of other people at the shapes that they are published with, and a training loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.swap._cases import load

DTYPES = {  # name -> (dtype of the weights and of the pixels, autocast to bf16)
    "fp32": (torch.float32, False),
    "bf16 autocast": (torch.float32, True),
    "bf16 weights": (torch.bfloat16, False),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in training and how to get a loss from it, or from a twin of it."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]


class _Stored(torch.autograd.Function):
    """Gives a stored result forward and a stored gradient backward, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        ctx.dtype = x.dtype
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0].to(ctx.dtype), None, None


class _Stub(nn.Module):
    """Stands for layers that no fused op replaces: [B, N, D] in, [B, M, E] out, at no cost."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...], wrap: Any = None) -> None:
        super().__init__()
        self.register_buffer("result", torch.randn(after), persistent=False)
        self.register_buffer("grad", torch.randn(before) / before[-1], persistent=False)
        self.wrap = wrap

    def forward(self, x: Tensor, *_: Any) -> Any:
        result = _Stored.apply(x, self.result, self.grad)
        return result if self.wrap is None else self.wrap(logits=result)


def videomae(batch: int = 2, *, parts: bool = False) -> Subject:
    """Hugging Face VideoMAE-base in pretraining: 16 frames of 224 x 224, 90 % tubes masked.

    `parts` is the same model with stubs for the encoder's and decoder's layers, the Linear between
    them and the decoder's head: what remains is the embedding, masking, the assembly of the
    decoder's input, targets and loss.
    """
    hf = load("transformers")
    config = hf.VideoMAEConfig()
    model = hf.VideoMAEForPreTraining(config)
    tokens, visible = 1568, 8 * 20
    if parts:
        output = load("transformers.models.videomae.modeling_videomae").VideoMAEDecoderOutput
        wide, narrow, pixels = config.hidden_size, config.decoder_hidden_size, 2 * 16 * 16 * 3
        model.videomae.encoder.layer = nn.ModuleList()
        model.encoder_to_decoder = _Stub((batch, visible, wide), (batch, visible, narrow))
        sizes = (batch, tokens, narrow), (batch, tokens - visible, pixels)
        model.decoder = _Stub(*sizes, wrap=output)
    video = torch.randn(batch, 16, 3, 224, 224)
    masked = (torch.rand(batch, 196).argsort(1) >= 20).repeat(1, 8)  # tubes: the same each frame

    def loss(model: nn.Module) -> Tensor:
        pixels = video.to(next(model.parameters()))
        return model(pixels, bool_masked_pos=masked.to(pixels.device)).loss

    return Subject(model=model, loss=loss)


def _classifier(model: nn.Module, shape: tuple[int, ...], classes: int) -> Subject:
    pixels, labels = torch.randn(shape), torch.randint(classes, shape[:1])

    def loss(model: nn.Module) -> Tensor:
        logits = model(pixels.to(next(model.parameters())))
        logits = logits if isinstance(logits, Tensor) else logits.logits
        return F.cross_entropy(logits.float(), labels.to(logits.device))

    return Subject(model=model, loss=loss)


def vitmae(batch: int = 8) -> Subject:
    """Hugging Face ViTMAE-base in pretraining: images of 224 x 224, 75 % masked."""
    hf = load("transformers")
    images = torch.randn(batch, 3, 224, 224)
    return Subject(
        model=hf.ViTMAEForPreTraining(hf.ViTMAEConfig()),
        loss=lambda model: model(images.to(next(model.parameters()))).loss,
    )


def spt(batch: int = 8) -> Subject:
    """vit-pytorch's ViT for small data sets as in its README, without dropout: images of 256."""
    theirs = load("vit_pytorch.vit_for_small_dataset")
    sizes = {"dim": 1024, "depth": 6, "heads": 16, "mlp_dim": 2048}
    model = theirs.ViT(image_size=256, patch_size=16, num_classes=1000, **sizes)
    return _classifier(model, (batch, 3, 256, 256), 1000)


def patch_dropout() -> Subject:
    """timm's ViT-small in training with 75 % of the tokens left out: 16 images of 224 x 224."""
    model = load("timm").create_model("vit_small_patch16_224", patch_drop_rate=0.75)
    return _classifier(model, (16, 3, 224, 224), 1000)


def vivit(layers: int = 12) -> Subject:
    """Hugging Face ViViT-base as a classifier: one clip of 16 frames of 224 x 224."""
    hf = load("transformers")
    config = hf.VivitConfig(num_frames=16, num_labels=400, num_hidden_layers=layers)
    model = hf.VivitForVideoClassification(config)
    return _classifier(model, (1, 16, 3, 224, 224), 400)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "videomae-base": videomae,
    "videomae-base, parts": partial(videomae, parts=True),
    "vitmae-base": vitmae,
    "vit-pytorch SPT": spt,
    "timm ViT-S, PatchDropout": patch_dropout,
    "vivit-base": vivit,
}


def build(name: str, dtype: str, device: str) -> Subject:
    """Draw a model and its inputs, the same each time."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    model = subject.model.to(device, DTYPES[dtype][0]).train()
    for module in model.modules():  # what the layers that it stands for would give
        if isinstance(module, _Stub) and DTYPES[dtype][1]:
            module.to(torch.bfloat16)
    return Subject(model=model, loss=subject.loss)
