"""vit-pytorch's patch embeddings and masked autoencoder, and Hugging Face's ViTMAE."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stmeta import fuse
from tests.swap._cases import assert_close, assert_same_error, error, load, randomise, run

WIDTHS = {"dim": 24, "heads": 2, "mlp_dim": 32, "dim_head": 8}


def fused(model, **options):
    twin = copy.deepcopy(model)
    fuse(twin, strict=True, **options)
    return twin


def seeded(x, **options):
    def call(model):
        torch.manual_seed(3)  # both draw the same tokens
        return model(x, **options)

    return call


def vit(**options):
    sizes = {"image_size": 16, "patch_size": 4, "num_classes": 3, "depth": 1, "pool": "mean"}
    return load("vit_pytorch.vit").ViT(**{**WIDTHS, **sizes, **options})


def vit_3d(**options):
    sizes = {"image_size": 16, "image_patch_size": 4, "frames": 4, "frame_patch_size": 2}
    return load("vit_pytorch.vit_3d").ViT(**WIDTHS, **sizes, num_classes=3, depth=1, **options)


def mae(encoder, **options):
    sizes = {"decoder_dim": 16, "decoder_heads": 2, "decoder_dim_head": 8, "decoder_depth": 1}
    return randomise(load("vit_pytorch.mae").MAE(encoder=encoder, **{**sizes, **options}))


IMAGE, VIDEO = (2, 3, 16, 16), (2, 3, 4, 16, 16)


@pytest.mark.parametrize("variant", ["factorized_encoder", "factorized_self_attention"])
def test_vivit(variant):
    theirs = load("vit_pytorch.vivit")
    sizes = {"image_size": 16, "image_patch_size": 4, "frames": 4, "frame_patch_size": 2}
    depths = {"spatial_depth": 1, "temporal_depth": 1, "use_flash_attn": False}
    model = randomise(theirs.ViViT(**WIDTHS, **sizes, **depths, num_classes=3, variant=variant))
    call = seeded(torch.randn(VIDEO))
    assert_close(run(fused(model), call), run(model, call))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_vits(backend):
    for model, shape in ((vit(), IMAGE), (vit_3d(), VIDEO)):
        call = seeded(torch.randn(shape))
        assert_close(run(fused(model, backend=backend), call), run(model, call))


def test_patches_in_a_grid_and_without_norm():
    rearrange = load("einops.layers.torch").Rearrange
    cut = rearrange("b c (f pf) (h p1) (w p2) -> b f h w (pf p1 p2 c)", p1=4, p2=4, pf=2)
    model = nn.Sequential(cut, nn.Linear(96, 7), nn.ReLU())
    call = seeded(torch.randn(VIDEO))
    assert_close(run(fused(model), call), run(model, call))
    assert fused(model)(torch.randn(VIDEO)).shape == (2, 2, 4, 4, 7)
    part = fused(model)[1:]  # a slice has the same class, and nothing to cut
    assert part(torch.randn(5, 96)).shape == (5, 7)


def test_patches_left_alone():
    rearrange = load("einops.layers.torch").Rearrange
    order = rearrange("b c (h p1) (w p2) -> b (h w) (c p1 p2)", p1=4, p2=4)
    oblong = rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=2)
    square = rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4)
    bare = nn.LayerNorm(48, elementwise_affine=False)
    cases = {
        "order of features": nn.Sequential(order, nn.Linear(48, 5)),
        "not square": nn.Sequential(oblong, nn.Linear(24, 5)),
        "no weight": nn.Sequential(square, bare, nn.Linear(48, 5)),
        "Dropout": nn.Sequential(square, nn.Dropout(), nn.Linear(48, 5)),
        "not over a patch": nn.Sequential(square, nn.LayerNorm((16, 48)), nn.Linear(48, 5)),
    }
    for word, model in cases.items():
        (left,) = fuse(model).left
        assert word in left.reason and type(model) is nn.Sequential
    assert "no block" in fuse(nn.Sequential(rearrange("b n (h d) -> b h n d", h=2))).left[0].reason


def test_what_patches_refuse():
    model = vit().to_patch_embedding
    twin = fused(model)
    for wrong in (torch.randn(2, 3, 15, 16), torch.randn(2, 1, 16, 16), torch.randn(VIDEO)):
        assert_same_error(model, twin, wrong)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("decoder_dim", [16, 24])
def test_mae(backend, decoder_dim):
    for encoder, shape in ((vit(), IMAGE), (vit_3d(), VIDEO), (vit_3d(pool="mean"), None)):
        if shape is None:  # a table with a row for a class token that is not used
            encoder.pos_embedding = nn.Parameter(encoder.pos_embedding[:, 1:].detach())
            shape = VIDEO
        model = mae(encoder, decoder_dim=decoder_dim)
        call = seeded(torch.randn(shape))
        assert_close(run(fused(model, backend=backend), call), run(model, call))


def test_mae_float64():
    torch.set_default_dtype(torch.float64)  # it makes a buffer of this dtype
    try:
        model, call = mae(vit()), seeded(torch.randn(IMAGE))
        assert_close(run(fused(model), call), run(model, call), 1e-12)
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(IMAGE, dtype=torch.float64)
    for m in (model, fused(model)):
        with pytest.raises(RuntimeError, match="dtype"):
            m(x)


def test_mae_left_alone(monkeypatch):
    """Positions of a class token without a batch axis: the class itself cannot run then."""
    for model, word in ((mae(vit(pool="cls")), "batch axis"), (mae(vit()), "hooks")):
        if word == "hooks":
            model.decoder_pos_emb.register_forward_hook(lambda *_: None)
        reasons = {item.block: item.reason for item in fuse(model).left}
        assert word in reasons["MAE"] and type(model).__name__ == "MAE"
    from stmeta.swap import mae as ours

    monkeypatch.setattr(ours, "_FORWARD", ())
    assert "version of vit-pytorch" in fuse(mae(vit())).left[0].reason


def test_mae_gradient_of_pixels():
    model, grads, x = mae(vit()), [], torch.randn(IMAGE)
    for m in (model, fused(model)):
        pixels = x.clone().requires_grad_()
        seeded(pixels)(m).backward()
        grads.append(pixels.grad)
    assert error(grads[1], grads[0]) <= 1e-5


@pytest.fixture
def vit_mae():
    hf = load("transformers")
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "intermediate_size": 48, "decoder_num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1}

    def make(name="ViTMAEForPreTraining", **options):
        config = hf.ViTMAEConfig(**sizes, **heads, **decoder, **options)
        return randomise(getattr(hf, name)(config))

    return make


@pytest.mark.parametrize("options", [{}, {"norm_pix_loss": True}, {"mask_ratio": 0.4}], ids=str)
def test_vit_mae(vit_mae, options):
    model, noise = vit_mae(**options), torch.rand(2, 16)
    for more in ({}, {"noise": noise}):
        call = seeded(torch.randn(2, 3, 32, 32), **more)
        assert_close(run(fused(model), call), run(model, call))


def test_vit_mae_other_calls(vit_mae, tmp_path):
    model = vit_mae()
    twin, x = fused(model), torch.randn(2, 3, 32, 32)
    larger = seeded(torch.randn(2, 3, 48, 48), interpolate_pos_encoding=True)
    assert_close(run(twin, larger), run(model, larger))
    pair = [seeded(x, return_dict=False)(m) for m in (model, twin)]
    assert len(pair[0]) == len(pair[1]) and error(pair[1][0], pair[0][0]) <= 1e-5
    states = [seeded(x, output_hidden_states=True)(m).hidden_states for m in (model, twin)]
    assert len(states[0]) == len(states[1]) > 1 and error(states[1][-1], states[0][-1]) <= 1e-5
    for wrong in (torch.randn(2, 3, 24, 24), torch.randn(2, 1, 32, 32), x.double()):
        errors = []
        for m in (model, twin):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                m(wrong)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    twin.save_pretrained(tmp_path)
    assert '"ViTMAEForPreTraining"' in (tmp_path / "config.json").read_text()
    encoder = vit_mae("ViTMAEModel", mask_ratio=0.0)
    assert_close(run(fused(encoder), seeded(x)), run(encoder, seeded(x)))


def test_vit_mae_left_alone(vit_mae, monkeypatch):
    from stmeta.swap import vit_mae as ours

    for name in ("_EMBED", "_DECODER", "_PRETRAIN"):
        monkeypatch.setattr(ours, name, ())
    report = fuse(vit_mae())
    assert [item.name for item in report.left] == ["", "vit.embeddings", "decoder"]
    assert [item.block for item in report.replaced] == ["Conv2d"]
    monkeypatch.undo()
    model = vit_mae()
    model.vit.embeddings.random_masking = model.vit.embeddings.random_masking
    model.patchify = model.patchify
    assert sum("on the instance" in item.reason for item in fuse(model).left) == 2
