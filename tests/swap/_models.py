"""Small models with the structure of mae_st's and VideoMAE's, written for these tests.

The classes of those projects are known by what their methods say. `teach` makes the ones here known
in their place, so that the fused methods can be held against methods that do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import checkpoint

from stmeta.swap import mae_st, videomae_own
from stmeta.swap._common import digest


class Tubelets(nn.Module):
    """[B, 3, T, H, W] to [B, t, h * w, D]."""

    def __init__(self, dim, size=16, patch=4, frames=8, tubelet=2):
        super().__init__()
        self.img_size, self.patch_size, self.frames = (size, size), (patch, patch), frames
        self.grid_size, self.t_grid_size = size // patch, frames // tubelet
        self.num_patches = self.t_grid_size * self.grid_size**2
        self.input_size = (self.t_grid_size, self.grid_size, self.grid_size)
        self.proj = nn.Conv3d(3, dim, (tubelet, patch, patch), (tubelet, patch, patch))

    def forward(self, clip):
        assert clip.shape[2:] == (self.frames, *self.img_size)
        return self.proj(clip).flatten(3).permute(0, 2, 3, 1)


class FlatTubelets(Tubelets):
    """[B, 3, T, H, W] to [B, N, D]."""

    def forward(self, clip):
        return self.proj(clip).flatten(2).mT


class Mix(nn.Module):
    """Each token looks at all others."""

    def __init__(self, dim):
        super().__init__()
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        look = torch.softmax(self.q(x) @ x.mT / x.shape[-1] ** 0.5, dim=-1)
        return x + look @ self.v(x)


class Layer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(dim), Mix(dim)

    def forward(self, x):
        return x + self.attn(self.norm(x))


def take(x: Tensor, ids: Tensor) -> Tensor:
    return x.take_along_dim(ids[..., None], dim=1)


class Steps(nn.Module):
    """The steps of mae_st's masked autoencoder."""

    def __init__(self, separable=False, token=True, normalise=True, predicted=4, inner=12, dim=16):
        super().__init__()
        self.patch_embed = Tubelets(dim)
        self.sep_pos_embed, self.cls_embed, self.norm_pix_loss = separable, token, normalise
        self.pred_t_dim, self.t_pred_patch_size = predicted, 2 * predicted // 8
        t, h, w = self.input_size = self.patch_embed.input_size
        for prefix, width in (("", dim), ("decoder_", inner)):
            tables = {"": token + t * h * w}
            if separable:
                tables = {"_spatial": h * w, "_temporal": t, **({"_class": 1} if token else {})}
            for name, rows in tables.items():
                table = nn.Parameter(torch.randn(1, rows, width))
                setattr(self, f"{prefix}pos_embed{name}", table)
            if token:
                setattr(self, f"{prefix}cls_token", nn.Parameter(torch.randn(1, 1, width)))
        self.mask_token = nn.Parameter(torch.randn(1, 1, inner))
        self.blocks, self.norm = nn.ModuleList([Layer(dim)]), nn.LayerNorm(dim)
        self.decoder_embed = nn.Linear(dim, inner)
        self.decoder_blocks, self.decoder_norm = nn.ModuleList([Layer(inner)]), nn.LayerNorm(inner)
        self.decoder_pred = nn.Linear(inner, self.t_pred_patch_size * 16 * 3)

    def table(self, prefix):
        if not self.sep_pos_embed:
            return getattr(self, f"{prefix}pos_embed")
        space, time = (getattr(self, f"{prefix}pos_embed_{k}") for k in ("spatial", "temporal"))
        rows = (space[:, None] + time[:, :, None]).flatten(1, 2)
        if self.cls_embed:
            rows = torch.cat([getattr(self, f"{prefix}pos_embed_class"), rows], 1)
        return rows

    def random_masking(self, x, ratio):
        batch, count, _ = x.shape
        shuffle = torch.rand(batch, count, device=x.device).argsort(1)
        restore, keep = shuffle.argsort(1), shuffle[:, : int(count * (1 - ratio))]
        return take(x, keep), (restore >= keep.shape[1]).float(), restore, keep

    def forward_encoder(self, clip, ratio):
        x, mask, restore, keep = self.random_masking(self.patch_embed(clip).flatten(1, 2), ratio)
        table, first = self.table(""), int(self.cls_embed)
        x = x + take(table[:, first:].expand(len(x), -1, -1), keep)
        if first:
            x = torch.cat([(self.cls_token + table[:, :1]).expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, first:], mask, restore

    def forward_decoder(self, x, restore):
        x = self.decoder_embed(x)
        hidden = self.mask_token.expand(len(x), restore.shape[1] - x.shape[1], -1)
        x = take(torch.cat([x, hidden], 1), restore)
        if self.cls_embed:
            x = torch.cat([self.decoder_cls_token.expand(len(x), -1, -1), x], 1)
        x = x + self.table("decoder_")
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, int(self.cls_embed) :]

    def patchify(self, clip):
        u, p, side = self.t_pred_patch_size, 4, clip.shape[-1] // 4
        self.patch_info = (len(clip), *clip.shape[2:], p, u, clip.shape[2] // u, side, side)
        parts = clip.unflatten(4, (side, p)).unflatten(3, (side, p)).unflatten(2, (-1, u))
        return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)

    def forward_loss(self, clip, pred, mask):
        frames = torch.linspace(0, clip.shape[2] - 1, self.pred_t_dim).long()
        target = self.patchify(clip[:, :, frames])
        if self.norm_pix_loss:
            variance, centre = torch.var_mean(target, -1, keepdim=True)
            target = (target - centre) / torch.sqrt(variance + 1e-6)
        return (((pred - target).square()).mean(-1) * mask).sum() / mask.sum()

    def forward(self, imgs, mask_ratio=0.75):
        latent, mask, restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, restore)
        return self.forward_loss(imgs, pred, mask), pred, mask


class Visible(nn.Module):
    """The encoder of VideoMAE's autoencoder."""

    def __init__(self, dim=16):
        super().__init__()
        self.patch_embed, self.use_checkpoint = FlatTubelets(dim), False
        self.pos_embed = torch.randn(1, self.patch_embed.num_patches, dim)  # no parameter
        self.blocks, self.norm = nn.ModuleList([Layer(dim)]), nn.LayerNorm(dim)

    def forward_features(self, x, mask):
        x = self.patch_embed(x)
        x = x + self.pos_embed.to(x)
        x = x[mask.logical_not()].view(len(x), -1, x.shape[-1])
        for block in self.blocks:
            x = checkpoint.checkpoint(block, x) if self.use_checkpoint else block(x)
        return self.norm(x)

    def forward(self, x, mask):
        return self.forward_features(x, mask)


class Hidden(nn.Module):
    """The decoder of VideoMAE's autoencoder."""

    def __init__(self, dim=12):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Layer(dim)]), nn.Linear(dim, 96)

    def forward(self, x, return_token_num):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, -return_token_num:])


class TwoParts(nn.Module):
    """VideoMAE's autoencoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Visible(), Hidden()
        self.encoder_to_decoder = nn.Linear(16, 12, bias=False)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 12))
        self.pos_embed = torch.randn(1, self.encoder.patch_embed.num_patches, 12)

    def forward(self, x, mask):
        latent = self.encoder_to_decoder(self.encoder(x, mask))
        pos = self.pos_embed.to(x).expand(len(x), -1, -1)
        seen, unseen = (pos[m].view(len(x), -1, 12) for m in (~mask, mask))
        full = torch.cat([latent + seen, self.mask_token + unseen], 1)
        return self.decoder(full, unseen.shape[1])


def teach(monkeypatch):
    """Let `fuse` know the classes above as it knows those of the two projects."""
    for methods, known in (
        (mae_st.MaskedAutoencoder, Steps),
        (videomae_own.Encoder, Visible),
        (videomae_own.Autoencoder, TwoParts),
    ):
        texts = {name: (digest(getattr(known, name)),) for name in methods.digests}
        monkeypatch.setattr(methods, "digests", texts)
    monkeypatch.setattr(mae_st, "_PATCH_EMBED", (digest(Tubelets.forward),))
    monkeypatch.setattr(videomae_own, "_PATCH_EMBED", (digest(FlatTubelets.forward),))


def hide(batch: int, count: int, hidden: int) -> Tensor:
    return functional.one_hot(torch.rand(batch, count).argsort(1)[:, :hidden], count).sum(1).bool()
