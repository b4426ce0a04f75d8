"""A whole training step of the masked autoencoder: forward, backward and AdamW.

Preset small_64, batch 32, 90 % masked, from uint8 video that lies [B, T, H, W, C] in memory.

- eager: a masked autoencoder as people write it, in plain PyTorch, on the very modules and
  parameters of `VideoMAE`: embed all tokens, gather the kept ones, encode, put mask tokens
  between, decode, compare with normalised patches. Attention is `locality_attention_ref`.
- compile: torch.compile of that.
- fused: `VideoMAE` with fused ops.

All draw their masks. "backward" holds the AdamW step too. The cases take turns in one run, so
ratios hold across dtypes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import stmeta
from benchmarks._draw import video
from benchmarks._problem import Call
from stmeta.models.small_vit import PRESETS, SmallViT
from stmeta.models.video_mae import VideoMAE
from stmeta.nn.spt import compute_dtype
from stmeta.ops import patch_shift_ref

OP = "mae_step"
CASE = "small_64, batch 32, 90 % masked"
BATCH, RATIO = 32, 0.9
Loss = Callable[[VideoMAE, Tensor], Tensor]


def standard_loss(model: VideoMAE, clips: Tensor) -> Tensor:
    """The loss of `VideoMAE.forward`, as people write it."""
    ids_keep, ids_restore, mask = _draw_mask(clips.shape[0], model.config.tokens, clips.device)
    x = _encode(model.encoder, clips, ids_keep)
    pred = _decode(model, x, ids_restore)
    with torch.no_grad():
        target = _targets(model, clips)
    loss = (pred.float() - target).square().mean(-1)
    return (loss * mask).sum() / mask.sum()


def _draw_mask(batch: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids_keep [B, K], ids_restore [B, N], mask [B, N] (1 = masked)."""
    shuffled = torch.rand(batch, tokens, device=device).argsort(dim=1)
    ids_restore, keep = shuffled.argsort(dim=1), int(tokens * (1 - RATIO))
    mask = torch.ones(batch, tokens, device=device)
    mask[:, :keep] = 0
    return shuffled[:, :keep], ids_restore, mask.gather(1, ids_restore)


def _encode(encoder: SmallViT, clips: Tensor, ids_keep: Tensor) -> Tensor:
    embed, positions = encoder.patch_embed, encoder.pos_embed
    tokens = patch_shift_ref(
        clips,
        tubelet=embed.tubelet,
        patch=embed.patch,
        shifts=embed.shifts,
        mean=embed.mean,
        std=embed.std,
        norm_weight=embed.norm.weight,
        norm_bias=embed.norm.bias,
        eps=embed.norm.eps,
        dtype=compute_dtype(embed.proj.weight),
    )
    x = embed.proj(tokens) + positions.table()
    x = x.gather(1, ids_keep[:, :, None].expand(-1, -1, x.shape[2]))
    first = (encoder.cls_token + positions.cls).expand(x.shape[0], -1, -1)
    x = torch.cat([first.to(x.dtype), x], dim=1)
    for block in encoder.blocks:
        x = block(x)
    return encoder.norm(x)


def _decode(model: VideoMAE, latent: Tensor, ids_restore: Tensor) -> Tensor:
    """Prediction of every token, [B, N, t*p*p*C]."""
    x = model.decoder_embed(latent)
    (batch, tokens), dim = ids_restore.shape, x.shape[2]
    missing = model.mask_token.to(x.dtype).expand(batch, tokens + 1 - x.shape[1], -1)
    full = torch.cat([x[:, 1:], missing], dim=1)
    full = full.gather(1, ids_restore[:, :, None].expand(-1, -1, dim)) + model.decoder_pos.table()
    x = torch.cat([(x[:, :1] + model.decoder_pos.cls).to(full.dtype), full], dim=1)
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_pred(model.decoder_norm(x))[:, 1:]


def _targets(model: VideoMAE, clips: Tensor) -> Tensor:
    """Patches of all tokens, normalised one by one: [B, N, t*p*p*C]."""
    config = model.config
    pixels = patch_shift_ref(
        clips,
        tubelet=config.tubelet,
        patch=config.patch,
        shifts="none",
        mean=config.mean,
        std=config.std,
    )
    variance, centre = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - centre) / (variance + 1e-6).sqrt()


def fused_loss(model: VideoMAE, clips: Tensor) -> Tensor:
    """The same with stmeta's ops."""
    return model(clips, mask_ratio=RATIO).loss


def _step(
    loss_of: Loss, model: VideoMAE, optimizer: Any, clips: Tensor, backend: str, half: bool
) -> Call:
    def forward() -> Tensor:
        scope = contextlib.nullcontext() if backend == "auto" else stmeta.backend(backend)
        with scope, torch.autocast(clips.device.type, torch.bfloat16, enabled=half):
            return loss_of(model, clips)

    def backward(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Call(forward=forward, backward=backward)


def _ways(model: VideoMAE, clips: Tensor, half: bool) -> dict[str, Callable[[], Call]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    rest = (model, optimizer, clips)

    def reduce_overhead() -> Call:
        loss_of = torch.compile(standard_loss, dynamic=False, mode="reduce-overhead")
        call = _step(loss_of, *rest, "eager", half)

        def forward() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return call.forward()

        return Call(forward=forward, backward=call.backward)

    ways: dict[str, Callable[[], Call]] = {
        "eager": lambda: _step(standard_loss, *rest, "eager", half),
        "compile": lambda: _step(
            torch.compile(standard_loss, dynamic=False), *rest, "eager", half
        ),
    }
    if clips.is_cuda:
        ways["reduce-overhead"] = reduce_overhead
    ways["fused"] = lambda: _step(fused_loss, *rest, "auto", half)
    return ways


def test_mae_step(device, compare):
    model = VideoMAE(PRESETS["small_64"]).to(device).train()
    clips = video(device, BATCH)
    compare.ways(
        {
            f"{CASE}, fp32": _ways(model, clips, half=False),
            f"{CASE}, bf16": _ways(model, clips, half=True),
        }
    )


def test_losses_agree(device, benchmark):
    """Eager and fused compute the same loss, given the same masks."""
    model = VideoMAE(PRESETS["tiny"]).to(device)
    config = model.config
    shape = (2, 3, config.frames, config.image_size, config.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    ids_keep, ids_restore, mask = _draw_mask(2, config.tokens, clips.device)
    from stmeta.ops import masking_from_keep

    with torch.no_grad():
        pred = _decode(model, _encode(model.encoder, clips, ids_keep), ids_restore)
        error = (pred - _targets(model, clips)).square().mean(-1)
        standard = (error * mask).sum() / mask.sum()
        ours = benchmark(lambda: model(clips, masking_from_keep(ids_keep, config.tokens)).loss)
    torch.testing.assert_close(ours, standard)
