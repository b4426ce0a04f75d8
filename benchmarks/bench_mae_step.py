"""A whole training step of the masked autoencoder: forward, backward and AdamW.

Preset small_64, batch 32, 90 % masked, from uint8 video that lies [B, T, H, W, C] in memory.

- eager: a masked autoencoder as people write it, in plain PyTorch, on the very modules and
  parameters of `VideoMAE`: embed all tokens, gather the kept ones, encode, put mask tokens
  between, decode, compare with normalised patches. Attention is `locality_attention_ref`.
- compile: torch.compile of that, its four parts one by one, so that a block is compiled once for
  all. With --full also as one graph, which takes longer to compile.
- fused: `VideoMAE` with fused ops.

All draw their masks. "backward" holds the AdamW step too. The cases take turns in one run, so
ratios hold across dtypes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import stmeta
from benchmarks._draw import video
from benchmarks._problem import Call
from stmeta.models.small_vit import PRESETS, SmallViT
from stmeta.models.video_mae import VideoMAE
from stmeta.nn.spt import compute_dtype
from stmeta.ops import masking_from_keep, patch_shift_ref

OP = "mae_step"
CASE = "small_64, batch 32, 90 % masked"
BATCH, RATIO = 32, 0.9
Loss = Callable[[VideoMAE, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a standard masked autoencoder, so that each can be compiled."""

    embed: Callable[..., Any]
    block: Callable[..., Any]
    fill: Callable[..., Any]
    score: Callable[..., Any]

    def compiled(self, **options: Any) -> Parts:
        parts = {f.name: torch.compile(getattr(self, f.name), **options) for f in fields(self)}
        return Parts(**parts)


def standard_loss(model: VideoMAE, clips: Tensor, parts: Parts) -> Tensor:
    """The loss of `VideoMAE.forward`, as people write it."""
    ids_keep, ids_restore, mask = _draw_mask(clips.shape[0], model.config.tokens, clips.device)
    x = parts.embed(model.encoder, clips, ids_keep)
    for block in model.encoder.blocks:
        x = parts.block(block, x)
    x = parts.fill(model, x, ids_restore)
    for block in model.decoder_blocks:
        x = parts.block(block, x)
    return parts.score(model, x, clips, mask)


def _draw_mask(batch: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids_keep [B, K], ids_restore [B, N], mask [B, N] (1 = masked)."""
    shuffled = torch.rand(batch, tokens, device=device).argsort(dim=1)
    ids_restore, keep = shuffled.argsort(dim=1), int(tokens * (1 - RATIO))
    mask = torch.ones(batch, tokens, device=device)
    mask[:, :keep] = 0
    return shuffled[:, :keep], ids_restore, mask.gather(1, ids_restore)


def _embed(encoder: SmallViT, clips: Tensor, ids_keep: Tensor) -> Tensor:
    """Embed all tokens, then gather the kept ones: [B, 1 + K, D]."""
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
    return torch.cat([first.to(x.dtype), x], dim=1)


def _block(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def _fill(model: VideoMAE, latent: Tensor, ids_restore: Tensor) -> Tensor:
    """Mask tokens between the encoded ones, and positions: [B, 1 + N, D]."""
    x = model.decoder_embed(model.encoder.norm(latent))
    (batch, tokens), dim = ids_restore.shape, x.shape[2]
    missing = model.mask_token.to(x.dtype).expand(batch, tokens + 1 - x.shape[1], -1)
    full = torch.cat([x[:, 1:], missing], dim=1)
    full = full.gather(1, ids_restore[:, :, None].expand(-1, -1, dim)) + model.decoder_pos.table()
    return torch.cat([(x[:, :1] + model.decoder_pos.cls).to(full.dtype), full], dim=1)


def _score(model: VideoMAE, x: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked tokens."""
    pred = model.decoder_pred(model.decoder_norm(x))[:, 1:]
    with torch.no_grad():
        target = _targets(model, clips)
    loss = (pred.float() - target).square().mean(-1)
    return (loss * mask).sum() / mask.sum()


EAGER = Parts(embed=_embed, block=_block, fill=_fill, score=_score)


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


def _ways(model: VideoMAE, clips: Tensor, half: bool, whole: bool) -> dict[str, Callable[[], Call]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def way(loss_of: Loss, backend: str = "eager") -> Call:
        return _step(loss_of, model, optimizer, clips, backend, half)

    def compiled(**options: Any) -> Loss:
        return partial(standard_loss, parts=EAGER.compiled(dynamic=False, **options))

    def reduce_overhead() -> Call:
        call = way(compiled(mode="reduce-overhead"))

        def forward() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return call.forward()

        return Call(forward=forward, backward=call.backward)

    eager = partial(standard_loss, parts=EAGER)
    ways: dict[str, Callable[[], Call]] = {
        "eager": lambda: way(eager),
        "compile": lambda: way(compiled()),
    }
    if whole:
        ways["compile, one graph"] = lambda: way(torch.compile(eager, dynamic=False))
    if clips.is_cuda:
        ways["reduce-overhead"] = reduce_overhead
    ways["fused"] = lambda: way(fused_loss, "auto")
    return ways


def test_mae_step(device, compare, request):
    model = VideoMAE(PRESETS["small_64"]).to(device).train()
    clips, whole = video(device, BATCH), request.config.getoption("--full")
    compare.ways(
        {
            f"{CASE}, fp32": _ways(model, clips, False, whole),
            f"{CASE}, bf16": _ways(model, clips, True, whole),
        }
    )


def test_losses_agree(device, benchmark, monkeypatch):
    """Eager and fused compute the same loss, given the same masks."""
    model = VideoMAE(PRESETS["tiny"]).to(device)
    config = model.config
    shape = (2, config.in_chans, config.frames, config.image_size, config.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    drawn = _draw_mask(2, config.tokens, clips.device)
    monkeypatch.setitem(globals(), "_draw_mask", lambda *_: drawn)
    masking = masking_from_keep(drawn[0], config.tokens)
    with torch.no_grad():
        ours = benchmark.pedantic(lambda: model(clips, masking).loss, rounds=1)
        torch.testing.assert_close(ours, standard_loss(model, clips, EAGER))
