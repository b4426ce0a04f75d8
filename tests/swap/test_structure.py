"""Models of projects that are no packages: mae_st and VideoMAE, known by their methods."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stmeta import fuse, unfuse
from tests.swap._cases import assert_close, error, randomise, run
from tests.swap._models import Steps, TwoParts, hide, teach


def clip(dtype=torch.float32):
    return torch.randn(2, 3, 8, 16, 16, dtype=dtype)


def steps(x, ratio=0.7):
    def call(model):
        torch.manual_seed(3)  # both draw the same tokens
        return dict(zip(("loss", "pred", "mask"), model(x, mask_ratio=ratio), strict=True))

    return call


def fused(model, **options):
    twin = copy.deepcopy(model)
    fuse(twin, strict=True, **options)
    return twin


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token": False},
        {"separable": True},
        {"separable": True, "token": False, "normalise": False, "predicted": 8},
    ],
    ids=str,
)
def test_mae_st(monkeypatch, options, backend):
    teach(monkeypatch)
    model, call = Steps(**options), steps(clip())
    twin = fused(model, backend=backend)
    assert_close(run(twin, call), run(model, call))
    assert twin.patch_info == model.patch_info
    assert unfuse(twin) == 2 and type(twin) is Steps


def test_mae_st_decoder_by_time(monkeypatch):
    """Blocks that ask for it get [B, T, H * W, D]."""
    teach(monkeypatch)
    model = Steps(token=False)
    model.decoder_blocks[0].attn.requires_t_shape = True
    shapes = []
    model.decoder_blocks[0].register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    steps(clip())(fused(model))
    assert shapes == [(2, 4, 16, 12)]


def test_mae_st_methods_of_an_instance(monkeypatch):
    """Put there after `fuse`, they are used."""
    teach(monkeypatch)
    model = Steps()
    twin = fused(model)
    for m in (model, twin):
        m.random_masking = lambda x, ratio, m=m: type(m).random_masking(m, x.flip(0), ratio)
        m.patchify = lambda clip, m=m: 2 * type(m).patchify(m, clip)
    call = steps(clip())
    assert_close(run(twin, call), run(model, call))


def test_mae_st_other_calls(monkeypatch):
    """What the ops do not cover runs as before: a gradient of pixels, nothing masked."""
    teach(monkeypatch)
    model = Steps().double()
    twin, grads = fused(model), []
    for m in (model, twin):
        pixels = clip(torch.float64).copy_(torch.linspace(-2, 2, 12288).view(2, 3, 8, 16, 16))
        steps(pixels.requires_grad_())(m)["loss"].backward()
        grads.append(pixels.grad)
    assert error(grads[1], grads[0]) <= 1e-12
    everything = [steps(clip(torch.float64), 0.0)(m)["loss"] for m in (model, twin)]
    assert all(loss.isnan() for loss in everything)
    for m in (model, twin):
        with pytest.raises(AssertionError):
            m(torch.randn(2, 3, 8, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize("saving", [False, True])
def test_videomae(monkeypatch, saving):
    teach(monkeypatch)
    model, x, mask = randomise(TwoParts()), clip(), hide(2, 64, 50)
    twin = fused(model)
    if saving:  # the call that the class makes, with the choice that torch asks for
        whole = torch.utils.checkpoint.checkpoint
        both = lambda *args: whole(*args, use_reentrant=False)  # noqa: E731
        monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", both)
        twin.encoder.use_checkpoint = model.encoder.use_checkpoint = True
    call = lambda m: m(x, mask)  # noqa: E731
    assert_close(run(twin, call), run(model, call))
    uneven = torch.arange(64).expand(2, -1) < torch.tensor([[20], [40]])
    results = []
    for m in (model, twin):  # rows that differ in number are mixed, or refused
        try:
            results.append(m(x, uneven))
        except RuntimeError as problem:
            results.append(str(problem))
    assert type(results[0]) is type(results[1])
    assert unfuse(twin) == 3


def test_others_are_left_alone(monkeypatch):
    """Methods that say something else, however much they look alike."""
    models = {"mae_st": Steps(), "VideoMAE": TwoParts()}
    for project, model in models.items():
        classes = [type(m) for m in model.modules()]
        with pytest.raises(ValueError, match=f"another way than those of .*{project}"):
            fuse(model, strict=True)
        assert [type(m) for m in model.modules()] == classes
        report = fuse(model)
        assert [item.block for item in report.replaced] == ["Conv3d"]
    teach(monkeypatch)

    class Mine(Steps):
        def forward_loss(self, imgs, pred, mask):
            return super().forward_loss(imgs, pred, mask) + pred.square().mean()

    hooked, replaced, grey = Steps(), Steps(), Steps()
    hooked.patch_embed.register_forward_hook(lambda *_: None)
    replaced.random_masking = replaced.random_masking
    grey.patch_embed.proj = nn.Conv3d(1, 16, (2, 4, 4), (2, 4, 4))
    models = {"forward_loss": Mine(), "hooks": hooked, "instance": replaced, "1 channels": grey}
    for word, model in models.items():
        reasons = {item.name: item.reason for item in fuse(model).left}
        assert word in reasons[""], reasons
        assert type(model).__module__ == __name__ or type(model) is Steps


def test_subclass_with_the_same_methods(monkeypatch):
    teach(monkeypatch)

    class Wider(Steps):
        def __init__(self):
            super().__init__(dim=20)

    model = Wider()
    assert_close(run(fused(model), steps(x := clip())), run(model, steps(x)))


@pytest.mark.parametrize("function", [fuse, unfuse])
@pytest.mark.parametrize(("model", "got"), [(None, "NoneType"), (nn.Linear, "the class Linear")])
def test_what_is_no_module_is_named(function, model, got):
    with pytest.raises(TypeError, match=rf"model must be a torch.nn.Module, got {got}; pass the"):
        function(model)
