from __future__ import annotations

import dataclasses

import pytest
import torch
from einops import rearrange

from stmeta.models import PRESETS, DecoderConfig, SmallViT, SmallViTConfig, VideoMAE
from stmeta.ops import patch_targets, random_masking

SMALL = SmallViTConfig(
    image_size=16,
    frames=4,
    patch=4,
    dim=12,
    depth=2,
    heads=2,
    head_dim=6,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    decoder=DecoderConfig(dim=8, depth=1, heads=2, head_dim=4),
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def make_video(batch=2, config=SMALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.frames, config.image_size, config.image_size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return video.permute(0, 4, 1, 2, 3)  # channels innermost, as the loader delivers


def test_parameter_counts_of_the_presets():
    with torch.device("meta"):
        encoder, mae = (kind(PRESETS["small_64"]) for kind in (SmallViT, VideoMAE))
        assert (count(encoder), count(mae)) == (3_055_404, 3_526_332)
        assert PRESETS["small_64"].tokens == 512
        paper = VideoMAE(PRESETS["paper_small_32"])
        tokens = paper.encoder.cls_token.numel() + paper.mask_token.numel()
        assert tokens == 192 + 96
        assert count(paper) - tokens == 3_109_008
        assert count(VideoMAE(PRESETS["paper_small_32_video"])) == 3_123_168
        assert PRESETS["tiny"].tokens == 72
        # Twelve blocks of ViT-B; the paper's 84,943,656 fits no ViT-B.
        assert count(SmallViT(PRESETS["vit_base"]).blocks) == 85_054_464
        assert count(SmallViT(PRESETS["vit_large"]).blocks) == 302_309_376


def test_masking_before_embedding_equals_embedding_before_masking():
    torch.manual_seed(0)
    encoder = SmallViT(SMALL).double()
    video = make_video().double() / 255
    ids = random_masking(2, SMALL.tokens, 0.75).ids_keep
    ours = encoder(video, ids)

    tokens = encoder.pos_embed(encoder.patch_embed(video))
    tokens = tokens.gather(1, ids[..., None].expand(-1, -1, SMALL.dim))
    cls = (encoder.cls_token + encoder.pos_embed.cls).expand(2, -1, -1)
    x = torch.cat([cls, tokens], 1)
    for block in encoder.blocks:
        x = block(x)
    torch.testing.assert_close(ours, encoder.norm(x))


def test_bytes_and_floats_give_the_same_tokens():
    torch.manual_seed(0)
    encoder = SmallViT(SMALL)
    video = make_video()
    torch.testing.assert_close(encoder(video), encoder(video.float() / 255), rtol=1e-4, atol=1e-5)


def textbook(model, video, masking):
    """The masked autoencoder, step by step over all tokens, as in the paper's description."""
    config = model.config
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None, None] for v in (config.mean, config.std)
    )
    pixels = (video - mean) / std
    target = rearrange(
        pixels,
        "b c (t i) (h j) (w k) -> b (t h w) (i j k c)",
        i=config.tubelet,
        j=config.patch,
        k=config.patch,
    )
    if model.norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (
            target.var(-1, keepdim=True) + 1e-6
        ).sqrt()
    x = model.decoder_embed(model.encoder(video, masking.ids_keep))
    batch, width = x.shape[0], x.shape[-1]
    full = model.mask_token.expand(batch, config.tokens, width).clone()
    for b in range(batch):
        for i, n in enumerate(masking.ids_keep[b].tolist()):
            full[b, n] = x[b, 1 + i]
    full = full + (model.decoder_pos.time[:, None] + model.decoder_pos.space).flatten(0, 1)
    full = torch.cat([x[:, :1] + model.decoder_pos.cls, full], 1)
    for block in model.decoder_blocks:
        full = block(full)
    pred = model.decoder_pred(model.decoder_norm(full))[:, 1:]
    mask = masking.mask.double()
    loss = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    return loss, pred


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_and_gradients_match_the_textbook(norm_pix):
    torch.manual_seed(0)
    model = VideoMAE(SMALL, norm_pix=norm_pix).double()
    video = make_video().double() / 255
    masking = random_masking(2, SMALL.tokens, 0.75)
    out = model(video, masking)
    loss, pred = textbook(model, video, masking)
    assert out.loss.dtype == torch.float64
    torch.testing.assert_close(out.loss, loss)
    index = masking.ids_masked[..., None].expand(-1, -1, pred.shape[-1])
    torch.testing.assert_close(out.pred, pred.gather(1, index))
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, plain = (torch.autograd.grad(value, parameters) for value in (out.loss, loss))
    for name, a, b in zip(names, ours, plain, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_every_parameter_learns_and_the_loss_falls():
    torch.manual_seed(0)
    model = VideoMAE(SMALL)
    video = make_video(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    masking = random_masking(8, SMALL.tokens, 0.5, generator)
    losses = []
    for _ in range(40):
        loss = model(video, masking).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.93 * losses[0]


def test_the_generator_decides_the_mask():
    torch.manual_seed(0)
    model = VideoMAE(SMALL).eval()
    video = make_video()
    a, b, c = (
        model(video, mask_ratio=0.5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.loss, b.loss)
    assert not torch.equal(a.mask, c.mask)
    tube = model(video, mask_ratio=0.5, mask_mode="tube").mask.view(2, *SMALL.grid)
    assert (tube == tube[:, :1]).all()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruction_with_perfect_predictions_is_the_clip(norm_pix, monkeypatch):
    model = VideoMAE(SMALL, norm_pix=norm_pix).eval()
    video = make_video()

    # The decoder is replaced by the true targets: what comes out must be the clip itself.
    def decode(latent, masking):
        return patch_targets(video, ids=masking.ids_masked, **model._target())[0]

    monkeypatch.setattr(model, "decode", decode)
    masking = random_masking(2, SMALL.tokens, 0.75)
    original, masked, rebuilt = model.reconstruct(video, masking)
    assert original.dtype == masked.dtype == rebuilt.dtype == torch.uint8
    assert torch.equal(original, video)
    assert (rebuilt.int() - video.int()).abs().max() <= 1
    kept = (~masking.mask).view(2, 1, *SMALL.grid)
    for axis, size in ((2, SMALL.tubelet), (3, SMALL.patch), (4, SMALL.patch)):
        kept = kept.repeat_interleave(size, axis)
    assert torch.equal(masked, torch.where(kept, video, 128))


def test_reconstruction_of_a_float_clip():
    model = VideoMAE(SMALL).eval()
    video = make_video()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for a, b in zip(
        model.reconstruct(video, generator=generators[0]),
        model.reconstruct(video.float() / 255, generator=generators[1]),
        strict=True,
    ):
        assert (a.int() - b.int()).abs().max() <= 1


def test_autocast_loss_is_fp32_and_close():
    torch.manual_seed(0)
    model = VideoMAE(SMALL)
    video, masking = make_video(), random_masking(2, SMALL.tokens, 0.75)
    exact = model(video, masking).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = model(video, masking)
    assert out.loss.dtype == torch.float32
    assert out.pred.dtype == torch.bfloat16
    assert abs(float((out.loss - exact).detach())) < 0.02


def test_a_model_without_class_token():
    config = dataclasses.replace(SMALL, cls_token=False)
    model = VideoMAE(config)
    assert model(make_video()).pred.shape[1:] == (29, SMALL.pixels)
    assert SmallViT(config)(make_video()).shape == (2, 32, 12)


def test_state_dict_round_trip():
    torch.manual_seed(0)
    one, two = VideoMAE(SMALL), VideoMAE(SMALL)
    masking = random_masking(2, SMALL.tokens, 0.75)
    assert not torch.equal(one(make_video(), masking).loss, two(make_video(), masking).loss)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(make_video(), masking).loss, two(make_video(), masking).loss)


def test_errors():
    model = VideoMAE(SMALL)
    with pytest.raises(ValueError, match=r"swap axes 1 and 2"):
        model(make_video().transpose(1, 2))
    with pytest.raises(ValueError, match=r"\[B, 3, 4, 16, 16\], got \[2, 3, 2, 16, 16\]"):
        model(make_video()[:, :, :2])
    with pytest.raises(ValueError, match="masks none of 32 tokens"):
        model(make_video(), mask_ratio=0.0)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch = 5, got 64"):
        SmallViTConfig(patch=5)
    with pytest.raises(ValueError, match="frames must be a multiple of tubelet = 3, got 16"):
        SmallViTConfig(tubelet=3)
