"""Patch embeddings of any model: convolutions of pixels whose kernel is their stride."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stmeta import fuse, unfuse
from stmeta.swap.conv import FusedConv2d, FusedConv3d
from tests.swap._cases import assert_close, error, load, randomise, run


def fused(model, **options):
    twin = copy.deepcopy(model)
    fuse(twin, strict=True, **options)
    return twin


CASES = {
    "video": (nn.Conv3d(3, 10, (2, 4, 4), (2, 4, 4)), (2, 3, 4, 8, 12)),
    "image": (nn.Conv2d(3, 10, 4, 4), (2, 3, 8, 12)),
    "one channel, no bias": (nn.Conv2d(1, 6, 5, 5, bias=False), (3, 1, 10, 5)),
    "a border is left out": (nn.Conv3d(2, 6, (2, 4, 4), (2, 4, 4)), (2, 2, 5, 11, 9)),
    "valid": (nn.Conv2d(3, 6, 4, 4, padding="valid"), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("conv,shape", CASES.values(), ids=CASES)
def test_convolution(conv, shape, backend):
    twin, x = fused(conv, backend=backend), torch.randn(shape)
    assert isinstance(twin, FusedConv2d | FusedConv3d) and isinstance(twin, type(conv))
    assert_close(run(twin, lambda m: m(x)), run(conv, lambda m: m(x)))
    tokens = twin(x).flatten(2).transpose(1, 2)
    assert tokens.is_contiguous()  # what follows a patch embedding copies nothing
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    assert error(twin(strided), conv(strided)) <= 1e-5


def test_gradient_of_pixels():
    conv, x = CASES["a border is left out"][0], torch.randn(2, 2, 5, 11, 9, dtype=torch.float64)
    conv = copy.deepcopy(conv).double()
    grads = []
    for m in (conv, fused(conv)):
        pixels = x.clone().requires_grad_()
        m(pixels).square().sum().backward()
        grads.append(pixels.grad)
    assert error(grads[1], grads[0]) <= 1e-12


@pytest.mark.parametrize("conv,shape", CASES.values(), ids=CASES)
def test_bf16(conv, shape):
    x = torch.randn(shape)
    exact = run(copy.deepcopy(conv).double(), lambda m: m(x.double()))
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (run(m, lambda m: m(x)) for m in (conv, fused(conv)))
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        bound = 2 * error(theirs[name], exact[name]) + torch.finfo(torch.bfloat16).eps
        assert error(value, exact[name]) <= bound, name


def test_other_calls_run_as_before():
    conv, shape = CASES["video"]
    twin, x = fused(conv), torch.randn(shape)
    assert torch.equal(twin(x[0]), conv(x[0]))  # one clip without a batch
    for wrong in (x.double(), x.to(torch.uint8), x[:, :2], x[..., :3], x[0, 0]):
        errors = []
        for m in (conv, twin):
            with pytest.raises(RuntimeError) as caught:
                m(wrong)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


def test_left_alone():
    model = nn.ModuleDict(
        {
            "features": nn.Conv2d(96, 192, 2, 2),
            "overlap": nn.Conv2d(3, 8, 7, 4),
            "padded": nn.Conv2d(3, 8, 4, 4, padding=2),
            "dilated": nn.Conv2d(3, 8, 4, 4, dilation=2),
            "grouped": nn.Conv2d(4, 8, 4, 4, groups=2),
            "oblong": nn.Conv3d(3, 8, (2, 4, 8), (2, 4, 8)),
            "ordinary": nn.Conv2d(3, 8, 3, padding=1),
            "other": nn.Linear(3, 3),
            "patches": nn.Conv2d(3, 8, 4, 4),
        }
    )
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="strict"):
        fuse(model, strict=True)
    assert [type(m) for m in model.modules()] == classes
    report = fuse(model)
    assert [item.name for item in report.replaced] == ["patches"]
    reasons = {item.name: item.reason for item in report.left}
    words = {
        "features": "96 input channels",
        "overlap": "overlap",
        "padded": "padding",
        "dilated": "dilation",
        "grouped": "groups",
        "oblong": "square",
    }
    assert reasons.keys() == words.keys()
    assert all(word in reasons[name] for name, word in words.items())
    assert "6 left alone" in str(report) and "(model)" not in str(report)


def test_a_model_without_blocks():
    model = nn.Sequential(nn.Linear(2, 2))
    assert [item.block for item in fuse(model).left] == ["Sequential"]
    with pytest.raises(ValueError, match="no block that stmeta knows"):
        fuse(model, strict=True)
    with pytest.raises(ValueError, match="backend must be one of"):
        fuse(model, backend="fast")


def test_unfuse_refuses_what_was_built_on_it():
    model = fused(nn.Sequential(nn.Conv2d(3, 8, 4, 4)))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="built on a fused class"):
        unfuse(model)


def test_compile():
    conv, shape = CASES["video"]
    x = torch.randn(shape)
    compiled = torch.compile(fused(conv), backend="aot_eager", fullgraph=True)
    found = {
        k.replace("grad _orig_mod.", "grad "): v for k, v in run(compiled, lambda m: m(x)).items()
    }
    assert_close(found, run(conv, lambda m: m(x)))


def test_timm():
    patch_embed = load("timm.layers.patch_embed")
    x = torch.randn(2, 3, 16, 16)
    for options in ({}, {"norm_layer": nn.LayerNorm}, {"output_fmt": "NHWC"}):
        model = randomise(patch_embed.PatchEmbed(16, 4, 3, 10, **options))
        twin = fused(model)
        assert list(twin.state_dict()) == list(model.state_dict())
        assert_close(run(twin, lambda m: m(x)), run(model, lambda m: m(x)))
    model = patch_embed.PatchEmbed(16, 4, 3, 10, strict_img_size=False, dynamic_img_pad=True)
    odd = torch.randn(2, 3, 15, 18)
    assert_close(run(fused(model), lambda m: m(odd)), run(model, lambda m: m(odd)))


def test_timm_patch_dropout():
    dropout = load("timm.layers.patch_dropout").PatchDropout
    for options in ({}, {"ordered": True}, {"num_prefix_tokens": 0}, {"prob": 0.0}):
        model = nn.Sequential(nn.Linear(6, 6), dropout(**{"prob": 0.7, **options}))

        def call(m):
            torch.manual_seed(3)  # both draw the same tokens
            return m(torch.randn(2, 17, 6))

        twin = fused(model)
        assert_close(run(twin, call), run(model, call))
        assert_close(run(twin.eval(), call), run(model.eval(), call))


@pytest.mark.parametrize("name", ["ViTMAEForPreTraining", "VivitForVideoClassification"])
def test_transformers(name):
    hf = load("transformers")
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    if name.startswith("ViTMAE"):
        config = hf.ViTMAEConfig(
            **sizes,
            decoder_hidden_size=24,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
        )
        noise, x = torch.rand(2, 16), torch.randn(2, 3, 32, 32)
        call = lambda m: m(x, noise=noise)  # noqa: E731
    else:
        config = hf.VivitConfig(**sizes, num_frames=4, tubelet_size=[2, 8, 8], num_labels=3)
        x = torch.randn(2, 4, 3, 32, 32)
        call = lambda m: m(x)  # noqa: E731
    model = randomise(getattr(hf, name)(config))
    twin = fused(model)
    assert_close(run(twin, call), run(model, call))
