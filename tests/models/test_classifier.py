from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from stmeta.models import (
    PRESETS,
    DecoderConfig,
    SmallViTConfig,
    VideoClassifier,
    VideoMAE,
    read_weights,
)
from stmeta.ops import random_masking

SMALL = SmallViTConfig(
    image_size=16,
    frames=4,
    patch=4,
    dim=12,
    depth=2,
    heads=2,
    head_dim=6,
    decoder=DecoderConfig(dim=8, depth=1, heads=2, head_dim=4),
)


def make_video(batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)


def test_parameter_count_of_the_paper():
    with torch.device("meta"):
        model = VideoClassifier(PRESETS["paper_small_32_video"], 26)
    assert sum(p.numel() for p in model.parameters()) == 2_692_634


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_pooling(pool):
    torch.manual_seed(0)
    model = VideoClassifier(SMALL, 5, pool=pool).eval()
    video = make_video()
    tokens = model.encoder(video)
    pooled = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)
    features = model.fc_norm(pooled)
    torch.testing.assert_close(model.features(video), features)
    torch.testing.assert_close(model(video), features @ model.head.weight.T + model.head.bias)


def test_masked_training_uses_the_generators_tokens():
    torch.manual_seed(0)
    model = VideoClassifier(SMALL, 5).eval()
    video = make_video()
    ids = random_masking(2, SMALL.tokens, 0.5, torch.Generator().manual_seed(3)).ids_keep
    drawn = model(video, mask_ratio=0.5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, model(video, ids))
    assert not torch.equal(drawn, model(video))


def test_dropout_and_drop_path_act_in_training_only():
    torch.manual_seed(0)
    model = VideoClassifier(dataclasses.replace(SMALL, dropout=0.5, drop_path=0.5), 5)
    rates = [block.drop_path.rate for block in model.encoder.blocks]
    assert rates == [0.0, 0.5]
    video = make_video()
    assert not torch.equal(model(video), model(video))
    model.eval()
    assert torch.equal(model(video), model(video))


def test_encoder_of_a_pretrained_mae(tmp_path):
    torch.manual_seed(0)
    mae = VideoMAE(SMALL)
    save_file(mae.state_dict(), tmp_path / "mae.safetensors")
    torch.save({"model": mae.state_dict(), "step": 3}, tmp_path / "mae.pt")
    for name in ("mae.safetensors", "mae.pt"):
        model = VideoClassifier(SMALL, 5)
        report = model.load_encoder(read_weights(tmp_path / name))
        assert report.complete
        assert len(report.matched) == len(mae.encoder.state_dict())
        assert torch.equal(model.encoder(make_video()), mae.encoder(make_video()))
    assert not hasattr(model, "decoder_embed")


def test_encoder_of_another_classifier_brings_its_norm():
    torch.manual_seed(0)
    source, target = VideoClassifier(SMALL, 5), VideoClassifier(SMALL, 1)
    torch.nn.init.normal_(source.fc_norm.weight)
    target.load_encoder(source.state_dict())
    assert torch.equal(source.features(make_video()), target.features(make_video()))


def test_weights_that_do_not_fit_are_listed():
    weights = dict(VideoMAE(SMALL).state_dict())
    weights["encoder.norm.weight"] = torch.zeros(7)
    weights["encoder.extra"] = torch.zeros(1)
    del weights["encoder.cls_token"]
    model = VideoClassifier(SMALL, 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"1 missing: cls_token; 1 unexpected: extra; 1 mismatched"
    ) as error:
        model.load_encoder(weights)
    assert "norm.weight [7] for [12]" in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # nothing loaded
    report = model.load_encoder(weights, strict=False)
    assert (report.missing, report.unexpected) == (["cls_token"], ["extra"])
    assert torch.equal(model.encoder.norm.weight, torch.ones(12))
    assert torch.equal(model.encoder.pos_embed.space, weights["encoder.pos_embed.space"])


def test_layers_for_layer_wise_learning_rates():
    model = VideoClassifier(SMALL, 5)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["encoder.patch_embed.proj.weight"] == (0, 3)
    assert layers["encoder.pos_embed.time"] == layers["encoder.cls_token"] == (0, 3)
    assert layers["encoder.blocks.1.attn.qkv.weight"] == (2, 3)
    assert layers["encoder.norm.weight"] == layers["head.weight"] == (3, 3)
    assert model.no_decay() == {
        f"encoder.{n}" for n in ("cls_token", "pos_embed.space", "pos_embed.time", "pos_embed.cls")
    }
    assert model.no_decay() < set(layers)
    mae = VideoMAE(SMALL)
    assert {"mask_token", "decoder_pos.space", "encoder.cls_token"} < mae.no_decay()
    assert mae.no_decay() < {name for name, _ in mae.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "max"}, "pool must be 'mean' or 'cls', got 'max'"),
        (
            {"pool": "cls", "config": dataclasses.replace(SMALL, cls_token=False)},
            "needs config.cls_token",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoClassifier(arguments.pop("config", SMALL), 5, **arguments)
