"""vit-pytorch's ViT for small data sets: shifted patches and locality attention."""

from __future__ import annotations

import copy

import pytest
import torch

from stmeta import fuse, unfuse
from tests.swap._cases import assert_close, assert_same_error, error, load, randomise, run


@pytest.fixture(scope="module")
def theirs():
    return load("vit_pytorch.vit_for_small_dataset")


def make(theirs, **options):
    sizes = {"image_size": 16, "patch_size": 4, "num_classes": 5, "dim": 24, "depth": 2}
    return randomise(theirs.ViT(**sizes, heads=3, dim_head=16, mlp_dim=32, **options))


def fused(model, **options):
    twin = copy.deepcopy(model)
    fuse(twin, strict=True, **options)
    return twin


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("channels", [3, 1])
def test_model(theirs, channels, backend):
    model, x = make(theirs, channels=channels), torch.randn(2, channels, 16, 16)
    twin = fused(model, backend=backend)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert_close(run(twin, lambda m: m(x)), run(model, lambda m: m(x)))
    blocks = {type(m).__name__ for m in twin.modules()}
    assert {"FusedSPT", "FusedLSA"} <= blocks
    assert unfuse(twin) == 4 and [type(m) for m in twin.modules()] == [
        type(m) for m in model.modules()
    ]


def test_float64(theirs):
    model, x = make(theirs).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_close(run(fused(model), lambda m: m(x)), run(model, lambda m: m(x)), 1e-12)


def test_bf16(theirs):
    model, x = make(theirs), torch.randn(2, 3, 16, 16)
    exact = run(copy.deepcopy(model).double(), lambda m: m(x.double()))
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = (run(m, lambda m: m(x)) for m in (model, fused(model)))
    for name, value in ours.items():
        assert value.dtype == plain[name].dtype
        bound = 2 * error(plain[name], exact[name]) + torch.finfo(torch.bfloat16).eps
        assert error(value, exact[name]) <= bound, name


def test_compile(theirs):
    model, x = make(theirs), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(fused(model), backend="aot_eager", fullgraph=True)
    found = {
        k.replace("grad _orig_mod.", "grad "): v for k, v in run(compiled, lambda m: m(x)).items()
    }
    assert_close(found, run(model, lambda m: m(x)))


def test_dropout_on_weights_is_left_alone(theirs):
    model = make(theirs, dropout=0.1)
    report = fuse(model)
    assert [item.block for item in report.replaced] == ["SPT", "Sequential"]
    assert [item.block for item in report.left] == ["LSA", "LSA"]
    assert all("attention weights" in item.reason for item in report.left)


def test_hooks_on_weights_are_called(theirs):
    """vit-pytorch's own Recorder reads attention maps by a hook on the softmax."""
    model, x, seen = make(theirs), torch.randn(2, 3, 16, 16), []
    expected = model(x)
    fuse(model, strict=True)
    model.transformer.layers[0][0].attend.register_forward_hook(lambda *a: seen.append(a[2].shape))
    assert error(model(x), expected) <= 1e-5
    assert seen == [(2, 3, 17, 17)]


def test_what_the_model_refuses(theirs):
    model = make(theirs)
    twin = fused(model)
    for wrong in (torch.randn(2, 3, 15, 16), torch.randn(2, 1, 16, 16), torch.randn(3, 16, 16)):
        assert_same_error(model, twin, wrong)
