"""Shifted patches and masked tokens in a plain ViT, as a masked autoencoder in forty lines.

    python examples/spt_masked_vit.py

The transformer is torch's own. stmeta gives the two ends: `ShiftedPatchEmbed`, which embeds only
the visible tokens straight from uint8 video, and `MaskedTokens` with `masked_patch_loss`, which put
the tokens back and compare the masked ones with the clip without ever making the targets.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from stmeta.data import ClipLoader, LoaderConfig
from stmeta.data.datasets import motions
from stmeta.nn import MaskedTokens, ShiftedPatchEmbed
from stmeta.ops import masked_patch_loss, random_masking

SIZE, FRAMES, TUBELET, PATCH, DIM = 48, 8, 2, 8, 96


def transformer(depth: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        DIM, 4, 2 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class MaskedAutoencoder(nn.Module):
    """Feichtenhofer et al. 2022 with the embedding of Lee et al. 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = ShiftedPatchEmbed(SIZE, PATCH, FRAMES, TUBELET, embed_dim=DIM)
        tokens = self.embed.num_patches
        self.pos = nn.Parameter(0.02 * torch.randn(tokens, DIM))
        self.decoder_pos = nn.Parameter(0.02 * torch.randn(tokens, DIM))
        self.encoder, self.decoder = transformer(4), transformer(2)
        self.masked = MaskedTokens(DIM)
        self.head = nn.Linear(DIM, TUBELET * PATCH * PATCH * 3)

    def forward(self, video: Tensor, ratio: float) -> Tensor:
        """The loss of uint8 [B, C, T, H, W]."""
        masking = random_masking(len(video), self.embed.num_patches, ratio)
        visible = self.encoder(self.embed(video, masking.ids_keep, self.pos))
        rows = self.decoder(self.masked(visible, masking.ids_restore, self.decoder_pos))
        pred = self.head(rows)
        return masked_patch_loss(
            pred, video, mask=masking.mask, tubelet=TUBELET, patch=PATCH, norm_pix=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", default=None, help="a folder of splits; none = built-in clips")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    root = motions.build() if arguments.data is None else arguments.data
    model = MaskedAutoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    config = LoaderConfig(batch_size=16, frames=FRAMES, stride=2, size=SIZE, hflip=0.0)
    with ClipLoader(f"{root}/train", config) as loader:
        step = 0
        while step < arguments.steps:
            for batch in loader:
                loss = model(batch.video.transpose(1, 2), ratio=0.75)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if step % 20 == 0 or step == arguments.steps:
                    print(f"step {step}: loss {float(loss):.3f}")
                if step == arguments.steps:
                    return


if __name__ == "__main__":
    main()
