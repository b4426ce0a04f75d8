from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from stmeta.memory import DNCConfig, LSTMConfig, MANNConfig
from stmeta.models.few_shot import (
    FewShotClassifier,
    FewShotClassifierConfig,
    augment_episode_features,
    matching_loss,
)
from stmeta.models.image_encoder import ImageEncoderConfig

SMALL = MANNConfig(hidden=16, rows=16, width=24, num_heads=2, gate_bias=-2.0)
SEES = ("features", "label")
LSTM = FewShotClassifierConfig.plain(
    LSTMConfig(hidden=16), standardise=True, inputs=("features", "label", "last_features")
)
CONFIGS = {
    "default": FewShotClassifierConfig(memory=SMALL),
    "plain": FewShotClassifierConfig.plain(),
    "lstm": LSTM,
    "dnc": FewShotClassifierConfig.plain(DNCConfig(hidden=16, rows=8, width=6)),
    "no direct keys": FewShotClassifierConfig(memory=SMALL, direct_keys=False, inputs=SEES),
    "no binding": FewShotClassifierConfig(memory=SMALL, bind=False, inputs=SEES),
}


def make_episodes(classes, batch, generator, *, ways=3, instances=5, noise=0.3):
    """Episodes of Gaussian classes: features [B, L, D] and labels [B, L], shuffled."""
    count, dim = classes.shape
    chosen = torch.rand(batch, count, generator=generator).argsort(1)[:, :ways]
    label = torch.arange(ways).repeat(instances).expand(batch, -1)
    order = torch.rand(label.shape, generator=generator).argsort(1)
    label = label.gather(1, order)
    features = classes[chosen.gather(1, label)]
    return features + noise * torch.randn(batch, ways * instances, dim, generator=generator), label


@pytest.mark.parametrize("name", CONFIGS)
def test_a_label_is_known_one_step_later_and_not_before(name):
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, CONFIGS[name]).eval()
    features, label = torch.randn(2, 9, 8), torch.randint(0, 3, (2, 9))
    other = label.clone()
    other[:, 4] = (label[:, 4] + 1) % 3
    moved = (model(features, label) - model(features, other)).abs().amax((0, 2)) > 0
    assert moved.tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clip_changes_nothing_before_it(name):
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, CONFIGS[name]).eval()
    features, label = torch.randn(2, 9, 8), torch.randint(0, 3, (2, 9))
    other = features.clone()
    other[:, 4] += 1
    moved = (model(features, label) - model(other, label)).abs().amax((0, 2)) > 0
    assert moved[:4].tolist() == [False] * 4
    assert moved[4:].all()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, CONFIGS[name])
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 9))
    logits = model(torch.randn(2, 9, 8), label, generator=generator)
    assert logits.shape == (2, 9, 3)
    F.cross_entropy(logits.flatten(0, 1), label.flatten()).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, parameter


def test_it_learns_to_name_new_classes():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, new = torch.randn(10, 16), torch.randn(6, 16)
    model = FewShotClassifier(16, 3, FewShotClassifierConfig(memory=SMALL))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        features, label = make_episodes(train, 16, generator)
        logits = model(features, label, generator=generator)
        loss = F.cross_entropy(logits.flatten(0, 1), label.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    features, label = make_episodes(new, 200, generator)
    with torch.no_grad():
        hit = (model(features, label).argmax(2) == label).float()
    instance = F.one_hot(label, 3).cumsum(1).gather(2, label[..., None])[..., 0]
    first, last = float(hit[instance == 1].mean()), float(hit[instance == 5].mean())
    assert last > 0.8
    assert first < 0.7  # a guess; chance is 1/3, and 0.61 if it knows which names are taken


def test_augmentation_keeps_distances_within_an_episode():
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    y = augment_episode_features(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cdist(y, y), torch.cdist(x, x))
    assert torch.equal(y.abs(), x.abs())
    sign = y / x
    torch.testing.assert_close(sign, sign[:, :1].expand_as(sign))
    assert not torch.equal(sign[0], sign[1])
    assert torch.equal(y, augment_episode_features(x, torch.Generator().manual_seed(0)))


def test_augmentation_and_statistics_only_in_training():
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, FewShotClassifierConfig(memory=SMALL))
    features, label = 5 + 3 * torch.randn(4, 9, 8), torch.randint(0, 3, (4, 9))
    seeds = [torch.Generator().manual_seed(s) for s in (0, 1, 1)]
    a, b, c = (model(features, label, generator=g) for g in seeds)
    assert not torch.equal(a, b)
    assert torch.equal(b, c)
    for _ in range(60):
        model(features, label)
    torch.testing.assert_close(
        model.standardise.running_mean, features.mean((0, 1)), rtol=1e-2, atol=1e-2
    )
    model.eval()
    before = model.standardise.running_mean.clone()
    assert torch.equal(model(features, label), model(features, label))
    assert torch.equal(model.standardise.running_mean, before)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, FewShotClassifierConfig(memory=SMALL)).eval()
    features, label = torch.randn(2, 9, 8), torch.randint(0, 3, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(features, label)
    assert torch.equal(half, model(features, label))


def test_state_dict_round_trip():
    torch.manual_seed(0)
    one, two = (FewShotClassifier(8, 3, FewShotClassifierConfig(memory=SMALL)) for _ in range(2))
    features, label = torch.randn(2, 9, 8), torch.randint(0, 3, (2, 9))
    one(features, label)  # moves the statistics
    one.eval(), two.eval()
    assert not torch.equal(one(features, label), two(features, label))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(features, label), two(features, label))


@pytest.mark.parametrize(
    ("features", "label", "message"),
    [
        (
            torch.zeros(2, 9, 7),
            torch.zeros(2, 9).long(),
            r"\[B, L, 8\], got \[2, 9, 7\]",
        ),
        (torch.zeros(2, 9, 8), torch.zeros(2, 8).long(), r"label must be .* \[2, 9\]"),
        (torch.zeros(2, 9, 8), torch.zeros(2, 9), "label must be int64"),
    ],
)
def test_errors(features, label, message):
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(8, 3)(features, label)


def test_flipping_signs_needs_centred_features():
    with pytest.raises(ValueError, match="augment needs standardise = True"):
        FewShotClassifierConfig(standardise=False)


@pytest.mark.parametrize("off", ["direct_keys", "bind"])
def test_a_network_that_cannot_see_the_clips_is_an_error(off):
    with pytest.raises(ValueError, match="add 'features' to inputs"):
        FewShotClassifierConfig(**{off: False})


def test_matching_loss_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    label = torch.tensor(
        [[0, 1, 0, 2, 2, 1, 0, 0], [1, 1, 1, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
    )
    losses = []
    for x, y in zip(features, label.tolist(), strict=True):
        for t in range(8):
            likeness = [float(F.cosine_similarity(x[t], x[s], dim=0)) for s in range(t)]
            attention = torch.tensor([10 * a for a in likeness], dtype=torch.float64).softmax(0)
            if y[t] in y[:t]:
                right = sum(a for a, other in zip(attention, y[:t], strict=True) if other == y[t])
                losses.append(-torch.log(torch.as_tensor(right)))
    exact = torch.stack(losses).mean()
    torch.testing.assert_close(matching_loss(features, label).double(), exact, rtol=1e-5, atol=0)


def test_matching_loss_without_a_class_that_comes_again():
    features = torch.randn(2, 4, 3, requires_grad=True)
    loss = matching_loss(features, torch.arange(4).expand(2, 4))
    loss.backward()
    assert loss == 0 and features.grad is not None and not features.grad.any()


def test_the_lstm_sees_the_last_clip_beside_its_label():
    torch.manual_seed(0)
    model = FewShotClassifier(8, 3, LSTM).eval()
    apart = FewShotClassifier(8, 3, dataclasses.replace(LSTM, inputs=SEES)).eval()
    assert model.cell.in_dim == 2 * 8 + 3 and apart.cell.in_dim == 8 + 3
    assert model(torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 3)


def test_a_memory_that_takes_no_keys_is_named():
    with pytest.raises(ValueError, match="takes keys, got LSTMCell; set both to False"):
        FewShotClassifier(8, 3, FewShotClassifierConfig(memory=LSTMConfig()))


def test_an_encoder_is_trained_along():
    torch.manual_seed(0)
    encoder = ImageEncoderConfig(filters=(4,), widths=(6,))
    model = FewShotClassifierConfig(memory=SMALL, encoder=encoder).build(64, 3)
    label = torch.zeros(2, 5, dtype=torch.int64)
    logits, features = model(torch.rand(2, 5, 64), label, with_features=True)
    assert logits.shape == (2, 5, 3) and features.shape == (2, 5, 6)
    logits.sum().backward()
    assert model.encoder.layers[0].weight.grad.abs().sum() > 0
