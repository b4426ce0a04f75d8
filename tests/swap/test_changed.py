"""Fused models that somebody changes, traces, scripts or moves afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, fx, nn

from stmeta import fuse
from stmeta.swap._common import Fused, original
from tests.swap._cases import assert_close, error, load, randomise, run
from tests.swap._families import FAMILIES, Case, numbers
from tests.swap._models import teach

# torch's own word about what it still has.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(params=FAMILIES)
def case(request, monkeypatch):
    teach(monkeypatch)
    return Case(request.param)


class Around(nn.Module):
    """Stands in for a module as an adapter does: it has none of its attributes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **options):
        return shifted(self.inner(*args, **options))


def shifted(result):
    return 0.9 * result + 0.1 if isinstance(result, Tensor) else result


def attempt(call, model):
    """Its numbers, or None where it cannot."""
    try:
        with torch.no_grad():
            return call(model)
    except (AttributeError, RuntimeError, TypeError):
        return None


def same(found, exact):
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.shape == exact[name].shape
        assert error(value, exact[name]) <= 1e-5, name


def test_any_module_may_be_replaced(case):
    """By what has none of its attributes: LoRA, a Sequential, a wrapper of another package."""
    compared = 0
    for name, module in list(case.model.named_modules())[1:]:
        if isinstance(module, nn.ModuleList):
            continue
        models = [case.model, case.twin]
        inner = [m.get_submodule(name) for m in models]
        for m, module in zip(models, inner, strict=True):
            m.set_submodule(name, Around(module))
        exact = attempt(case.call, case.model)
        if exact is not None:
            same(case.call(case.twin), exact)
            compared += 1
        for m, module in zip(models, inner, strict=True):
            m.set_submodule(name, module)
    assert compared >= 2


def test_any_module_may_get_a_hook(case):
    for name, _ in list(case.model.named_modules())[1:]:
        handles = [
            m.get_submodule(name).register_forward_hook(lambda *a: shifted(a[2]))
            for m in (case.model, case.twin)
        ]
        exact = attempt(case.call, case.model)
        if exact is not None:
            same(case.call(case.twin), exact)
        for handle in handles:
            handle.remove()


def own(cls):
    return original(cls) if issubclass(cls, Fused) else cls


def test_hooks_for_all_modules(case):
    seen = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(own(type(module)).__name__)
    )
    try:
        case.call(case.model)
        expected, seen[:] = list(seen), []
        case.call(case.twin)
    finally:
        hook.remove()
    assert seen == expected


def test_a_projection_of_other_patches(monkeypatch):
    """Of the same class, but no patch embedding: its kernel is not its stride."""
    teach(monkeypatch)
    for name in ("hf-vivit", "hf-videomae-classes", "hf-vitmae", "mae_st"):
        case = Case(name)
        modules = case.model.named_modules()
        path = next(n for n, m in modules if isinstance(m, nn.Conv2d | nn.Conv3d))
        conv = copy.deepcopy(case.model.get_submodule(path))
        other = type(conv)(3, 16, (*conv.stride[:-1], 2), conv.stride)
        for m in (case.model, case.twin):
            m.set_submodule(path, other)
        same(case.call(case.twin), case.call(case.model))


def test_attention_and_dropout_of_others():
    theirs = load("vit_pytorch.vit_for_small_dataset")
    model = randomise(theirs.LSA(12, heads=2, dim_head=6))
    x = torch.randn(2, 5, 12)
    for change in (
        lambda m: setattr(m, "attend", nn.Softmax(dim=2)),
        lambda m: setattr(m, "attend", nn.Sigmoid()),
        lambda m: setattr(m, "dropout", nn.Identity()),
    ):
        plain, twin = copy.deepcopy(model), copy.deepcopy(model)
        fuse(twin, strict=True)
        change(plain), change(twin)
        assert error(twin(x), plain(x)) <= 1e-6


def test_on_the_meta_device(case):
    inputs = [x.to("meta") for x in case.inputs]
    case.model.to("meta"), case.twin.to("meta")
    exact = attempt(lambda m: numbers(m(*inputs)), case.model)
    if exact is None:
        pytest.skip("the plain model cannot: it counts the tokens of a mask")
    found = numbers(case.twin(*inputs))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in exact.items()
    }


def replicated(module):
    """As `DataParallel` copies a model to a device: parameters are no Parameters there."""
    copied = module._replicate_for_data_parallel()
    for name, value in module._parameters.items():
        setattr(copied, name, None if value is None else value * 1)
    for name, child in module._modules.items():
        copied._modules[name] = replicated(child)
    return copied


def test_replicas(case):
    same(case.call(replicated(case.twin)), case.call(case.model))


def operators(graph):
    return {str(n.target) if isinstance(n, fx.Node) else n.kind() for n in graph}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_traced(case):
    """As the plain model: operators of torch alone, which run without this library."""

    def traced(model):
        torch.manual_seed(3)
        program = torch.jit.trace(model.eval(), tuple(case.inputs), strict=False, check_trace=False)
        assert not any("stmeta" in kind for kind in operators(program.inlined_graph.nodes()))
        torch.manual_seed(3)
        result = program(*case.inputs)
        return numbers({"out": result} if isinstance(result, Tensor) else result)

    exact = attempt(traced, case.model)
    if exact is None:
        pytest.skip("the plain model cannot be traced")
    same(traced(case.twin), exact)


def timm_blocks():
    """Models of timm and Sequentials that TorchScript and `torch.fx` take, and their inputs."""
    embed = load("timm.layers.patch_embed").PatchEmbed(16, 4, 3, 10)
    dropout = load("timm.layers.patch_dropout").PatchDropout(0.5)
    rearrange = load("einops.layers.torch").Rearrange
    cut = rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4)
    image, video = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 16, 16)
    return {
        "image": (nn.Conv2d(3, 6, 4, 4, bias=False), image),
        "video": (nn.Conv3d(3, 6, (2, 4, 4), (2, 4, 4)), video),
        "timm": (nn.Sequential(embed, dropout), image),
        "vit-pytorch": (nn.Sequential(cut, nn.LayerNorm(48), nn.Linear(48, 6)), image),
    }


BLOCKS = ("image", "video", "timm", "vit-pytorch")


@pytest.mark.parametrize("name", BLOCKS)
def test_scripted(name, tmp_path):
    model, x = timm_blocks()[name]
    twin = copy.deepcopy(randomise(model))
    fuse(twin, strict=True)
    classes = [type(m) for m in twin.modules()]
    torch.jit.save(torch.jit.script(twin), str(tmp_path / "model.pt"))
    program = torch.jit.load(str(tmp_path / "model.pt"))
    assert [type(m) for m in twin.modules()] == classes  # and the model itself stays fused
    results = []
    for m in (program, model):
        torch.manual_seed(3)
        results.append(m(x))
    assert error(*results) <= 1e-6


@pytest.mark.parametrize("name", ["image", "video", "timm"])  # einops has no rule for it
def test_a_symbolic_trace(name):
    model, x = timm_blocks()[name]
    model.eval()  # timm draws by the sizes of tokens
    twin = copy.deepcopy(randomise(model))
    fuse(twin, strict=True)
    program = fx.symbolic_trace(twin)
    assert error(program(x), model(x)) <= 1e-6
    assert torch.equal(program(x), twin(x))  # it runs the same op


def test_for_onnx(monkeypatch):
    """Its exporter has translations of torch's operators: no op is in the program."""
    case = Case("hf-vivit")
    case.twin.eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(case.twin, tuple(case.inputs), strict=False)
    assert not any("stmeta" in str(node.target) for node in program.graph.nodes)
    same(numbers(program.module()(*case.inputs)), numbers(case.twin(*case.inputs)))


def test_sizes_that_change():
    """One graph for all sizes, without a new one for each."""
    conv = nn.Sequential(nn.Conv3d(3, 6, (2, 4, 4), (2, 4, 4)))
    twin = copy.deepcopy(conv)
    fuse(twin, strict=True)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for size in ((2, 3, 4, 8, 12), (3, 3, 6, 16, 8), (4, 3, 8, 20, 24)):
        x = torch.randn(size)
        found = run(compiled, lambda m, x=x: m(x))
        found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
        assert_close(found, run(conv, lambda m, x=x: m(x)))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]
