"""timm's VisionTransformer with patch dropout, whole."""

from __future__ import annotations

import copy
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from stmeta import fuse, unfuse
from stmeta.swap import conv
from tests.swap._cases import assert_close, load, randomise, run

FILTERS = ("NEAREST", "BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")


class _Anything(ModuleType):
    """Has every name, as an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {filter: number for number, filter in enumerate(FILTERS)})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module):
        module.__version__ = "0"


@pytest.fixture(scope="module")
def theirs():
    """timm imports torchvision for transforms that no model needs; something stands in for it."""
    missing = importlib.util.find_spec("torchvision") is None
    half = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == "timm"}
    finder = _Finder()
    if missing:
        sys.meta_path.append(finder)
    try:
        yield load("timm.models.vision_transformer")
    finally:
        if missing:
            sys.meta_path.remove(finder)
        for key in list(sys.modules):
            if key.split(".")[0] in (("torchvision", "timm") if missing else ("timm",)):
                del sys.modules[key]
        for key in [key for key in sys.modules if key.startswith("stmeta.swap.")]:
            if key.rsplit(".", 1)[1] in ("patch_dropout", "vision_transformer"):
                del sys.modules[key]  # built on the modules that went
        sys.modules.update(half)


def model(theirs, **options):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    options = {"num_classes": 3, "patch_drop_rate": 0.6, **options}
    return randomise(theirs.VisionTransformer(**{**sizes, **options})).train()


def call(model):
    torch.manual_seed(3)  # both draw the same tokens
    dtype = next(model.parameters()).dtype
    return model(torch.arange(2 * 3 * 16 * 16, dtype=dtype).sin().view(2, 3, 16, 16))


VARIANTS = {
    "usual": {},
    "registers": {"reg_tokens": 2},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1},
    "no_class": {"class_token": False, "global_pool": "avg"},
    "pre_norm": {"pre_norm": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_only_kept_tokens_are_embedded(theirs, name, monkeypatch):
    plain = model(theirs, **VARIANTS[name])
    twin = copy.deepcopy(plain)
    report = fuse(twin, strict=True)
    assert "" in [item.name for item in report.replaced]
    assert twin.state_dict().keys() == plain.state_dict().keys()
    embedded = []

    def spy(*args, **options):
        embedded.append(options["ids_keep"].shape[1] if "ids_keep" in options else 16)
        return embed(*args, **options)

    embed = conv.embed
    monkeypatch.setattr(conv, "embed", spy)
    assert_close(run(twin, call), run(plain, call))
    assert embedded == [6]
    plain.eval(), twin.eval()
    assert_close(run(twin, call), run(plain, call))
    assert embedded == [6, 16]
    assert unfuse(twin) == 3 and type(twin) is theirs.VisionTransformer


def test_in_bf16(theirs):
    plain = model(theirs)
    twin = copy.deepcopy(plain)
    fuse(twin, strict=True)
    torch.manual_seed(3)
    exact = call(copy.deepcopy(plain).double())
    with torch.autocast("cpu", torch.bfloat16):
        before, after = call(plain), call(twin)
    assert (after - exact).norm() <= 2 * (before - exact).norm()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pos_drop_rate": 0.1}, "pos_drop draws for all tokens"),
        ({"dynamic_img_size": True}, "not laid out as tokens"),
        ({"img_size": 18}, "images of 18 x 18 pixels are no whole number of 4 x 4"),
        ({"pos_embed": "none"}, "it has no positions"),
        ({"embed_norm_layer": torch.nn.LayerNorm}, "patch_embed.norm sees all tokens"),
    ],
)
def test_what_stays(theirs, options, reason):
    left = fuse(model(theirs, **options)).left
    assert [item.name for item in left] == [""] and reason in left[0].reason


def test_models_without_patch_dropout_are_not_spoken_of(theirs):
    report = fuse(model(theirs, patch_drop_rate=0.0), strict=True)
    assert [item.name for item in report.replaced] == ["patch_embed.proj"]


@pytest.mark.parametrize("built_on", [False, True])
def test_a_timm_from_before_patch_dropout(monkeypatch, built_on):
    """It has the class, and no `timm.layers`."""
    old = type("VisionTransformer", (torch.nn.Module,), {})
    old.__module__ = "timm.models.vision_transformer"
    transformer = (type("Mine", (old,), {}) if built_on else old)()
    transformer.proj = torch.nn.Conv2d(3, 8, 4, 4)
    for name in ("timm", "timm.layers", "timm.models"):
        monkeypatch.setitem(sys.modules, name, None)
    report = fuse(transformer, strict=True)
    assert [item.name for item in report.replaced] == ["proj"]


def test_hooks_put_inside_later_are_called(theirs):
    plain = model(theirs)
    twin = copy.deepcopy(plain)
    fuse(twin)
    seen = []
    twin.patch_embed.register_forward_hook(lambda *_: seen.append(1))
    assert_close(run(twin, call), run(plain, call))
    assert seen
