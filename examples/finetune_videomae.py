"""Train Hugging Face's VideoMAE on clips with fused ops: python examples/finetune_videomae.py.

1. `stmeta.fuse` puts fused ops into the model and prints what it replaced. Weights stay what and
   where they are, so `from_pretrained` before it and `save_pretrained` after it work as ever.
2. Pretraining: 90 % of the tokens are masked.
3. The encoder's weights go into a classifier, which is fused and trained on the clips' labels.

The model is small and starts from nothing, so that this ends within a minute on a CPU; it shows how
the parts fit together and reaches no accuracy worth naming. It needs `pip install transformers`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

import stmeta
from stmeta.data.datasets import motions
from stmeta.data.loader import ClipLoader, LoaderConfig
from stmeta.ops import random_masking

STEPS = 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what VideoMAE was trained with
CONFIG = VideoMAEConfig(
    image_size=64,
    patch_size=8,
    num_frames=16,
    tubelet_size=2,
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=192,
    decoder_hidden_size=64,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=128,
    num_labels=len(motions.CLASSES),
)


def clips(loader: ClipLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised pixels [B, T, C, H, W] and labels [B]."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    for batch in loader:
        yield (batch.video / 255 - mean) / std, batch.label


def train(name: str, model: torch.nn.Module, loader: ClipLoader, masked: bool) -> None:
    """Run STEPS steps and print the loss at both ends."""
    print(stmeta.fuse(model, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, start = [], time.perf_counter()
    batches = itertools.chain.from_iterable(clips(loader) for _ in itertools.count())
    for pixels, label in itertools.islice(batches, STEPS):
        if masked:
            hidden = random_masking(len(pixels), 512, 0.9, mode="tube", frames=8).mask
            loss = model(pixels, bool_masked_pos=hidden).loss
        else:
            loss = model(pixels, labels=label).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = (sum(part) / 5 for part in (losses[:5], losses[-5:]))
    rate = STEPS * len(pixels) / (time.perf_counter() - start)
    print(f"{name}: loss {first:.3f} -> {last:.3f}, {rate:.0f} clips/s\n")


def main() -> None:
    """Pretrain, then train a classifier on the pretrained encoder."""
    torch.manual_seed(0)
    folder = motions.build(size="tiny") / "train"
    loader = ClipLoader(folder, LoaderConfig(batch_size=8, frames=16, size=64))
    pretrained = VideoMAEForPreTraining(CONFIG)
    train("pretrain", pretrained, loader, masked=True)
    classifier = VideoMAEForVideoClassification(CONFIG)
    classifier.videomae.load_state_dict(pretrained.videomae.state_dict(), strict=False)
    train("classify", classifier, loader, masked=False)


if __name__ == "__main__":
    main()
