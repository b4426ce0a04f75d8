"""Train Hugging Face's VideoMAE on clips with fused ops.

    python examples/finetune_videomae.py

1. `stmeta.fuse` puts fused ops into the model and prints what it replaced. Weights stay what and
   where they are, so `from_pretrained` before it and `save_pretrained` after it work as ever.
2. Pretraining: 90 % of the tokens are masked.
3. The encoder's weights go into a classifier, which is fused and trained on the clips' labels.

The model is small and starts from nothing, so that this ends within a minute on a CPU; it shows how
the parts fit together and reaches no accuracy worth naming. It needs `pip install transformers`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

import stmeta
from stmeta.data import ClipLoader, LoaderConfig
from stmeta.data.datasets import motions
from stmeta.ops import random_masking

SIZE, FRAMES, TUBELET, PATCH = 64, 16, 2, 8
TOKENS = (FRAMES // TUBELET) * (SIZE // PATCH) ** 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what VideoMAE was trained with


def configure(classes: int) -> VideoMAEConfig:
    return VideoMAEConfig(
        image_size=SIZE,
        patch_size=PATCH,
        num_frames=FRAMES,
        tubelet_size=TUBELET,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        num_labels=classes,
    )


def clips(loader: ClipLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised pixels [B, T, C, H, W] and labels [B]."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    for batch in loader:
        yield (batch.video / 255 - mean) / std, batch.label


def train(name: str, model: nn.Module, loader: ClipLoader, steps: int, masked: bool) -> None:
    """Run some steps and print the loss on the way."""
    print(stmeta.fuse(model, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen, start = 0, time.perf_counter()
    batches = itertools.chain.from_iterable(clips(loader) for _ in itertools.count())
    for step, (pixels, label) in enumerate(itertools.islice(batches, steps), start=1):
        if masked:
            drawn = random_masking(len(pixels), TOKENS, 0.9, mode="tube", frames=FRAMES // TUBELET)
            loss = model(pixels, bool_masked_pos=drawn.mask).loss
        else:
            loss = model(pixels, labels=label).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(pixels)
        if step % 20 == 0 or step in (1, steps):
            rate = seen / (time.perf_counter() - start)
            print(f"{name}, step {step}: loss {loss.item():.3f}, {rate:.0f} clips/s")


def main() -> None:
    """Pretrain, then train a classifier on the pretrained encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="of each of the two parts")
    parser.add_argument("--data", default=None, help="a folder of splits; none = built-in clips")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    root = motions.build(size="tiny") if arguments.data is None else arguments.data
    with ClipLoader(
        f"{root}/train", LoaderConfig(batch_size=8, frames=FRAMES, size=SIZE)
    ) as loader:
        config = configure(int(loader.index.labels.max()) + 1)
        pretrained = VideoMAEForPreTraining(config)
        train("pretrain", pretrained, loader, arguments.steps, masked=True)
        classifier = VideoMAEForVideoClassification(config)
        classifier.videomae.load_state_dict(pretrained.videomae.state_dict(), strict=False)
        train("classify", classifier, loader, arguments.steps, masked=False)


if __name__ == "__main__":
    main()
