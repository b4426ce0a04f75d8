"""Every family through what people do with a model: train, copy, save, compile, spread, export."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import pkgutil
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from stmeta import fuse, swap, unfuse
from stmeta.swap._common import Fused
from tests.swap._cases import KEYS, assert_close, error, load, run
from tests.swap._families import FAMILIES, Case, numbers
from tests.swap._models import Steps, teach

# What runs as one graph without fused ops does so with them. Masks as an argument are counted,
# which breaks a graph in either case; tests/swap/test_videomae.py compiles that in parts.
ONE_GRAPH = ["timm", "hf-vitmae", "vit-pytorch-mae", "vit-pytorch-vivit", "mae_st"]
# What torch.export takes as it is.
EXPORTED = ["timm", "hf-vivit", "vit-pytorch-small", "vit-pytorch-vivit", "mae_st"]


@pytest.fixture(params=FAMILIES)
def case(request, monkeypatch):
    teach(monkeypatch)
    return Case(request.param)


def bare(found):
    """Names of parameters without those of a wrapper."""
    return {re.sub("^grad (module|_orig_mod)[.]", "grad ", k): v for k, v in found.items()}


def test_numbers(case):
    assert case.report.replaced and not case.report.left
    assert list(case.twin.state_dict()) == list(case.model.state_dict())
    assert_close(run(case.twin, case.call), run(case.model, case.call))
    assert unfuse(case.twin) == len(case.report.replaced)
    assert [type(m) for m in case.twin.modules()] == [type(m) for m in case.model.modules()]


def test_signatures(case):
    """transformers' Trainer and others choose the arguments of a model by them."""
    for ours, theirs in zip(case.twin.modules(), case.model.modules(), strict=True):
        found, wanted = inspect.signature(ours.forward), inspect.signature(theirs.forward)
        if type(ours).__bases__[0] is Fused:
            assert found == wanted, type(theirs)
        assert list(found.parameters) == list(wanted.parameters), type(theirs)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(swap.__path__)])
def test_first_use_within_another_device(name):
    """Modules of a family are read when `fuse` meets it: also while "meta" is the default."""
    load("transformers" if name in ("videomae", "vit_mae") else "torch")
    found = importlib.util.find_spec(f"stmeta.swap.{name}")
    try:
        with torch.device("meta"):
            found.loader.exec_module(importlib.util.module_from_spec(found))
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")


def test_another_default_device(case):
    def call(model):
        with torch.device("meta"):
            return case.call(model)

    expected = run(case.model, case.call)
    try:
        assert_close(run(case.model, call), expected)
    except (AssertionError, NotImplementedError, RuntimeError):
        pytest.skip("the model itself depends on the default device")
    assert_close(run(case.twin, call), expected)


def test_autocast(case):
    exact = run(case.model, case.call)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = run(case.model, case.call), run(case.twin, case.call)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        if not name.endswith(KEYS):  # their gradient is rounding alone
            bound = 2 * error(theirs[name], exact[name]) + torch.finfo(torch.bfloat16).eps
            assert error(value, exact[name]) <= bound, name


def test_saved_and_copied(case, tmp_path):
    from safetensors.torch import load_model, save_model

    expected = run(case.model, case.call)
    for source, target in ((case.model, case.twin), (case.twin, case.model)):
        save_model(source, str(tmp_path / "weights.safetensors"))
        blank = copy.deepcopy(target)
        with torch.no_grad():
            for parameter in blank.parameters():
                parameter.zero_()
        load_model(blank, str(tmp_path / "weights.safetensors"))
        assert_close(run(blank, case.call), expected)
    buffer = io.BytesIO()
    torch.save(case.twin, buffer)
    buffer.seek(0)
    expected = run(case.twin, case.call)
    for other in (copy.deepcopy(case.twin), torch.load(buffer, weights_only=False)):
        assert [type(m) for m in other.modules()] == [type(m) for m in case.twin.modules()]
        assert_close(run(other, case.call), expected, 0)


def test_training_goes_on(case):
    """An optimizer made before `fuse` moves the same Parameters; hooks put before it are called."""
    model, before, seen = case.model, dict(case.model.named_parameters()), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    other = copy.deepcopy(model)  # copies the hook as well
    fuse(model, strict=True)
    assert all(before[name] is p for name, p in model.named_parameters())
    other_optimizer = torch.optim.SGD(other.parameters(), lr=1e-2)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        for _ in range(2):
            run(m, case.call)
            o.step()
    assert len(seen) == 4
    handle.remove()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_checkpointed(case):
    def call(model):
        torch.manual_seed(3)
        return numbers(checkpoint(model, *case.inputs, use_reentrant=False))

    assert_close(run(case.twin, call), run(case.model, case.call))


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddp") / "store"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp(case, group):
    spread = nn.parallel.DistributedDataParallel(case.twin, find_unused_parameters=True)
    found = run(spread, case.call)
    exact = run(case.model, case.call)
    # DDP gives unused parameters a gradient or none, as it likes: those of the model count.
    assert_close({k: v for k, v in bare(found).items() if k in exact}, exact)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ONE_GRAPH)
def test_compiled(name, monkeypatch):
    teach(monkeypatch)
    case = Case(name)
    torch._dynamo.reset()
    # Tracing the backward as well takes seconds: once, for the model with most ops.
    backend = "aot_eager" if name == "mae_st" else "eager"
    compiled = torch.compile(case.twin, backend=backend, fullgraph=True)
    assert_close(bare(run(compiled, case.call)), run(case.twin, case.call))


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(name, monkeypatch):
    teach(monkeypatch)
    case = Case(name)
    case.twin.eval()
    program = torch.export.export(case.twin, tuple(case.inputs))
    assert any("stmeta" in str(node.target) for node in program.graph.nodes)
    found, exact = case.call(program.module()), case.call(case.twin)
    assert found.keys() == exact.keys()
    assert all(error(found[key], exact[key]) <= 1e-5 for key in exact)


def test_untouched(monkeypatch):
    """Models that nothing fits: reasons, and the same classes as before."""
    cases = {
        "overlap": nn.Sequential(nn.Conv3d(3, 8, (3, 7, 7), (2, 4, 4))),
        "mae_st": Steps(),  # not taught
    }
    cases["mae_st"].patch_embed.proj = nn.Conv3d(3, 16, (2, 4, 4), (2, 4, 4), padding=1)
    for word, model in cases.items():
        classes = [type(m) for m in model.modules()]
        with pytest.raises(ValueError, match=rf"strict(.|\n)*{word}"):
            fuse(model, strict=True)
        report = fuse(model)
        assert not report.replaced and all(item.reason for item in report.left)
        assert any(word in item.reason for item in report.left)
        assert [type(m) for m in model.modules()] == classes
