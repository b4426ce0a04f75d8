"""Hugging Face's VideoMAE: the same numbers with and without fused ops."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from stmeta import fuse, unfuse
from tests.swap._cases import assert_close, error, load, randomise, run

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "tubelet_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 40,
}
TOKENS = 32


@pytest.fixture(scope="module")
def hf():
    return load("transformers")


@pytest.fixture
def model(hf):
    return randomise(hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**SMALL)))


def clip(channels=3, dtype=torch.float32):
    """Normalised pixels [B, T, C, H, W]; a part is flat, as a black border is."""
    x = torch.randn(2, 4, channels, 32, 32, dtype=torch.float64)
    x[1, :, :, :20] = -1.3
    return x.to(dtype)


def mask(hidden=28):
    return torch.rand(2, TOKENS).argsort(1) < hidden


def pretrain(x, masked, **options):
    return lambda m: m(x, bool_masked_pos=masked, **options)


def fused(model, **options):
    twin = copy.deepcopy(model)
    fuse(twin, strict=True, **options)
    return twin


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("config", [{}, {"norm_pix_loss": False}, {"num_channels": 1}], ids=str)
def test_pretraining(hf, config, backend):
    model = randomise(hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**SMALL, **config)))
    call = pretrain(clip(config.get("num_channels", 3)), mask())
    assert_close(run(fused(model, backend=backend), call), run(model, call))


@pytest.mark.parametrize("pooling", [True, False])
def test_classification(hf, pooling):
    config = hf.VideoMAEConfig(**SMALL, use_mean_pooling=pooling, num_labels=5)
    model = randomise(hf.VideoMAEForVideoClassification(config))
    x, labels = clip(), torch.tensor([1, 3])
    assert_close(*(run(m, lambda m: m(x, labels=labels)) for m in (fused(model), model)))


@pytest.mark.parametrize("masked", [True, False])
def test_encoder_alone(hf, masked):
    model = randomise(hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL)))
    x, hidden = clip(), mask() if masked else None
    assert_close(*(run(m, pretrain(x, hidden)) for m in (fused(model), model)))


@pytest.mark.parametrize("normalise", [True, False])
def test_float64(hf, normalise):
    config = hf.VideoMAEConfig(**SMALL, norm_pix_loss=normalise)
    model = randomise(hf.VideoMAEForPreTraining(config)).double()
    call = pretrain(clip(dtype=torch.float64), mask())
    assert_close(run(fused(model), call), run(model, call), 1e-12)


@pytest.mark.parametrize("config", [{}, {"norm_pix_loss": False}], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_bf16(hf, config, autocast):
    model = randomise(hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**SMALL, **config)))
    dtype = torch.float32 if autocast else torch.bfloat16
    model = model.to(dtype)
    x, masked = clip(dtype=dtype), mask()
    exact = run(copy.deepcopy(model).double(), pretrain(x.double(), masked))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs = run(model, pretrain(x, masked))
        ours = run(fused(model), pretrain(x, masked))
    assert theirs.keys() == ours.keys()
    eps = torch.finfo(torch.bfloat16).eps
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        bound = 2 * error(theirs[name], exact[name]) + eps
        assert error(value, exact[name]) <= bound, name


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_over_seeds(hf, autocast):
    """Errors of one seed are chance, of the loss above all: they differ by a factor of 80."""
    squares: dict[str, list[float]] = {}
    dtype = torch.float32 if autocast else torch.bfloat16
    for seed in range(16):
        torch.manual_seed(seed)
        config = hf.VideoMAEConfig(**SMALL, num_labels=5)
        model = randomise(hf.VideoMAEForVideoClassification(config)).to(dtype)
        x, labels = clip(dtype=dtype), torch.tensor([1, 3])
        exact = run(copy.deepcopy(model).double(), lambda m: m(x.double(), labels=labels))  # noqa: B023
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            both = [run(m, lambda m: m(x, labels=labels)) for m in (model, fused(model))]  # noqa: B023
        for name in exact:
            sums = squares.setdefault(name, [0.0, 0.0])
            for i, found in enumerate(both):
                sums[i] += error(found[name], exact[name]) ** 2
    for name, (theirs, ours) in squares.items():
        assert ours**0.5 <= 1.5 * theirs**0.5, name


def test_gradient_of_pixels(model):
    masked, x = mask(), clip()
    grads = []
    for m in (model, fused(model)):
        pixels = x.clone().requires_grad_()
        m(pixels, bool_masked_pos=masked).logits.square().mean().backward()
        grads.append(pixels.grad)
    assert error(grads[1], grads[0]) <= 1e-5


def test_hidden_states_and_tuples(model):
    call = pretrain(clip(), mask(), output_hidden_states=True)
    model.eval()
    ours, theirs = call(fused(model)), call(model)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert error(a, b) <= 1e-5
    x, masked = clip(), mask()
    pairs = [m(x, masked, return_dict=False) for m in (fused(model), model)]
    assert [len(p) for p in pairs] == [2, 2] and error(pairs[0][1], pairs[1][1]) <= 1e-5


def test_parameters_are_shared_and_optimizer_goes_on(model):
    twin = copy.deepcopy(model)
    before = dict(twin.named_parameters())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    fuse(twin, strict=True)
    assert all(before[name] is p for name, p in twin.named_parameters())
    other = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        x, masked = clip(), mask()
        for m, o in ((twin, optimizer), (model, other)):
            o.zero_grad()
            m(x, bool_masked_pos=masked).loss.backward()
            o.step()
    for name, p in model.named_parameters():
        # Adam divides by the size of a gradient: where that is rounding, the step is arbitrary.
        assert torch.allclose(before[name], p, atol=1e-3), name


def test_checkpoints_go_both_ways(hf, model, tmp_path):
    from safetensors.torch import load_file, save_file

    twin = fused(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    save_file(twin.state_dict(), tmp_path / "fused.safetensors")
    fresh = hf.VideoMAEForPreTraining(model.config)
    fresh.load_state_dict(load_file(tmp_path / "fused.safetensors"))
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
    )
    twin = fused(hf.VideoMAEForPreTraining(model.config))
    twin.load_state_dict(model.state_dict())
    call = pretrain(clip(), mask())
    assert_close(run(twin, call), run(model, call))


def test_save_pretrained(hf, model, tmp_path):
    fused(model).save_pretrained(tmp_path)
    assert '"VideoMAEForPreTraining"' in (tmp_path / "config.json").read_text()
    back = hf.VideoMAEForPreTraining.from_pretrained(tmp_path)
    assert type(back) is hf.VideoMAEForPreTraining
    call = pretrain(clip(), mask())
    assert_close(run(back, call), run(model, call))


def test_unfuse(model):
    classes = [type(m) for m in model.modules()]
    call = pretrain(clip(), mask())
    before = run(model, call)
    fuse(model, backend="eager")
    assert [type(m) for m in model.modules()] != classes
    assert unfuse(model) == 3
    assert [type(m) for m in model.modules()] == classes
    assert not any("stmeta_backend" in m.__dict__ for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in run(model, call).items())
    assert unfuse(model) == 0


def test_copies(model):
    twin, call = fused(model, backend="eager"), pretrain(clip(), mask())
    expected = run(twin, call)
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(twin), torch.load(buffer, weights_only=False)):
        assert type(other) is type(twin) and other.stmeta_backend == "eager"
        assert_close(run(other, call), expected, 0)
    model_again = fused(twin)  # a second call changes the backend
    assert model_again.stmeta_backend == "auto" and isinstance(model_again, type(model))


# Without fullgraph=True a graph breaks where tokens are counted: without fuse too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compile(model):
    call = pretrain(clip(), mask())
    expected = run(model, call)
    compiled = torch.compile(fused(model), backend="aot_eager")
    found = {k.replace("grad _orig_mod.", "grad "): v for k, v in run(compiled, call).items()}
    assert_close(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(model, reentrant):
    call = pretrain(clip(), mask())
    expected = run(model, call)
    twin = fused(model)
    name = "activation_checkpointing_enable"  # "gradient_..." before transformers 5
    enable = getattr(twin, name, None) or twin.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    twin.train()
    assert any(getattr(m, "gradient_checkpointing", False) for m in twin.modules())
    assert_close(run(twin, call), expected)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", ["", ".projection"])
def test_hooks_inside_are_called(model, path, when):
    call, seen = pretrain(clip(), mask()), []
    expected = run(model, call)

    def put():
        inner = model.get_submodule(f"videomae.embeddings.patch_embeddings{path}")
        inner.register_forward_hook(lambda *_: seen.append(1))

    if when == "before":
        put()
    report = fuse(model)
    if when == "after":
        put()
    reasons = {item.name: item.reason for item in report.left}
    assert ("hooks" in reasons.get("videomae.embeddings", "")) == (when == "before")
    assert_close(run(model, call), expected)
    assert seen == [1]


def test_hooks_of_the_block_stay(model):
    seen = []
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.videomae.embeddings.register_forward_pre_hook(lambda *_: seen.append("embeddings"))
    fuse(model, strict=True)
    model(clip(), bool_masked_pos=mask())
    assert seen == ["embeddings", "model"]


def test_what_the_model_refuses(model):
    twin = fused(model)
    wrong = {
        "size": (torch.randn(2, 4, 3, 24, 24), mask()),
        "channels": (clip(1), mask()),
        "frames": (torch.randn(2, 6, 3, 32, 32), mask()),
        "bytes": (clip().to(torch.uint8), mask()),
        "dtype": (clip().double(), mask()),
        "no mask": (clip(), None),
        "odd mask": (clip(), torch.arange(TOKENS).expand(2, -1) < torch.tensor([[5], [6]])),
    }
    for name, (x, masked) in wrong.items():
        errors = []
        for m in (model, twin):
            with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
                m(x, bool_masked_pos=masked)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1], name


def test_masks_that_differ_in_number(model):
    """The model mixes clips then, which its documentation rules out; so does the fused one."""
    masked = torch.arange(TOKENS).expand(2, -1) < torch.tensor([[4], [8]])
    x = clip()
    assert_close(*(run(m, pretrain(x, masked)) for m in (fused(model), model)))


def test_other_versions_are_left_alone(hf, model, monkeypatch):
    from stmeta.swap import videomae

    monkeypatch.setattr(videomae, "_EMBED", ())
    monkeypatch.setattr(videomae, "_PRETRAIN", ())
    report = fuse(model)
    assert [item.name for item in report.left] == ["", "videomae.embeddings"]
    assert all("version of transformers" in item.reason for item in report.left)
    assert [item.block for item in report.replaced] == ["Conv3d"]


def test_left_alone_with_reasons(hf, model):
    class Mine(type(model)):
        pass

    model.__class__ = Mine
    model.videomae.embeddings.forward = model.videomae.embeddings.forward
    projection = model.videomae.embeddings.patch_embeddings.projection
    nn.utils.parametrizations.weight_norm(projection)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"strict(.|\n)*Mine(.|\n)*on the instance"):
        fuse(model, strict=True)
    assert [type(m) for m in model.modules()] == classes
    report = fuse(model)
    assert not report.replaced and [type(m) for m in model.modules()] == classes
    reasons = {item.name: item.reason for item in report.left}
    assert "built on VideoMAEForPreTraining" in reasons[""]
    assert "instance" in reasons["videomae.embeddings"]
    assert "built on Conv3d" in reasons["videomae.embeddings.patch_embeddings.projection"]
    assert "3 left alone" in str(report)


def test_ddp(model, tmp_path):
    import torch.distributed as dist

    call = pretrain(clip(), mask())
    expected = run(model, call)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        found = run(nn.parallel.DistributedDataParallel(fused(model)), call)
    finally:
        dist.destroy_process_group()
    assert_close({k.replace("grad module.", "grad "): v for k, v in found.items()}, expected)
