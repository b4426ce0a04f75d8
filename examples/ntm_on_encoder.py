"""A memory behind any encoder: an NTM reads a clip frame by frame, in a plain PyTorch loop.

    python examples/ntm_on_encoder.py

The encoder here is a small convolutional net; put yours in its place. Only the memory is stmeta's:
a layer that takes [B, T, D] and gives `y, state`, with all steps of a clip in one call.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.data import ClipLoader, LoaderConfig
from stmeta.data.datasets import motions
from stmeta.memory import NTMConfig
from stmeta.nn import NTMMemory

SIZE, FRAMES, WIDTH = 48, 8, 64


class ClipClassifier(nn.Module):
    """Frames -> features -> NTM -> classes, from what the memory says at the last frame."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, WIDTH)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        config = NTMConfig(hidden=96, rows=32, width=32)
        self.memory = NTMMemory(WIDTH, classes, config=config)

    def forward(self, video: Tensor) -> Tensor:
        """Logits [B, classes] of uint8 [B, T, C, H, W]."""
        frames = video.flatten(0, 1).float() / 255 - 0.5
        features = self.encoder(frames).unflatten(0, video.shape[:2])  # [B, T, WIDTH]
        y, _ = self.memory(features)  # [B, T, classes]
        return y[:, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", default=None, help="a folder of splits; none = built-in clips")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    root = motions.build() if arguments.data is None else arguments.data
    config = LoaderConfig(batch_size=16, frames=FRAMES, stride=2, size=SIZE, hflip=0.0)
    with ClipLoader(f"{root}/train", config) as loader:
        model = ClipClassifier(int(loader.index.labels.max()) + 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        step = 0
        while step < arguments.steps:
            for batch in loader:
                loss = F.cross_entropy(model(batch.video), batch.label)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                step += 1
                if step % 20 == 0 or step == arguments.steps:
                    print(f"step {step}: loss {float(loss):.3f}")
                if step == arguments.steps:
                    return


if __name__ == "__main__":
    main()
