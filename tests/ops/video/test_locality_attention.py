"""Cases of locality_attention, and what is particular to it.

The gradient of the temperature is a sum of N * N terms that cancel, so the common rule does not fit
it: see `check_temperature`.
"""

from __future__ import annotations

import pytest
import torch

from stmeta.ops.video.locality_attention import locality_attention, locality_attention_ref
from tests.ops._harness import Arguments, Case, Op, choose
from tests.ops._harness.draw import normal, uniform
from tests.ops._harness.triton_aot import compile_launches, record_launches


def make(
    g: torch.Generator, B: int, N: int, H: int, E: int, exclude: bool = True, size: float = 1.0
) -> Arguments:
    return {
        "qkv": normal(g, B, N, 3, H, E) * size,
        "temperature": 0.1 + uniform(g, H),
        "exclude_self": exclude,
    }


def _sized(batch: int, tokens: int, heads: int, width: int, exclude: int) -> Case:
    return Case(
        name="any",
        make=lambda g: make(g, batch, tokens, heads, width, exclude > 0),
        fp32=("temperature",),
    )


OP = Op(
    name="locality_attention",
    function=locality_attention,
    reference=locality_attention_ref,
    outputs=("out",),
    constant=("temperature",),
    products=True,
    cases=(
        Case(name="usual", make=lambda g: make(g, 2, 52, 3, 16), fp32=("temperature",)),
        Case(name="plain", make=lambda g: make(g, 1, 40, 2, 32, False), fp32=("temperature",)),
        Case(name="odd", make=lambda g: make(g, 2, 33, 2, 7), fp32=("temperature",)),
        # Logits beyond the range of exp: the largest of a row must be taken out first.
        Case(name="sharp", make=lambda g: make(g, 1, 40, 2, 24, size=3.0), fp32=("temperature",)),
        Case(name="two", make=lambda g: make(g, 2, 2, 1, 4), fp32=("temperature",)),
        Case(name="lone", make=lambda g: make(g, 2, 1, 2, 8), fp32=("temperature",)),
        Case(name="empty", make=lambda g: make(g, 0, 5, 2, 8), fp32=("temperature",)),
    ),
    real=(
        Case(name="small_64", make=lambda g: make(g, 32, 513, 16, 16), fp32=("temperature",)),
        Case(name="base_224", make=lambda g: make(g, 2, 197, 12, 64), fp32=("temperature",)),
    ),
    tiny=Case(name="tiny", make=lambda g: make(g, 1, 3, 2, 2)),
    sizes={
        "batch": (0, 2),
        "tokens": (1, 40),
        "heads": (1, 3),
        "width": (1, 36),
        "exclude": (0, 1),
    },
    sized=_sized,
)


@pytest.mark.parametrize("name", ["cpu", "triton", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_gradient_of_the_temperature(name, dtype, exclude_self):
    device = choose(OP, name).device
    check_temperature(name, dtype, exclude_self, device)


def check_temperature(name, dtype, exclude_self, device="cpu"):
    """A sum of N * N terms that cancel: the error is small against the sum of their sizes."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 50, 3, 3, 16, device=device).to(dtype)
    grad = torch.randn(2, 50, 3, 16, device=device).to(dtype)
    temperature = (torch.rand(3, device=device) + 0.1).requires_grad_()
    exact = temperature.detach().double().requires_grad_()
    out = locality_attention_ref(qkv.double(), exact, exclude_self=exclude_self)
    (wanted,) = torch.autograd.grad(out, exact, grad.double())
    ours = locality_attention(qkv, temperature, exclude_self=exclude_self, backend=name)
    (found,) = torch.autograd.grad(ours, temperature, grad)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4).unbind(0)
    products = q @ k.transpose(-1, -2)
    logits = products * exact[:, None, None]
    if exclude_self:
        logits.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    weights = logits.softmax(-1)
    d = grad.double().transpose(1, 2) @ v.transpose(-1, -2)
    d = weights * (d - (weights * d).sum(-1, keepdim=True))
    sizes = (d * products).abs().sum((0, 2, 3))
    assert ((found - wanted).abs() <= torch.finfo(dtype).eps * sizes).all()


def test_a_lone_token_sees_itself():
    qkv = torch.randn(2, 1, 3, 2, 8)
    torch.testing.assert_close(locality_attention(qkv, torch.ones(2)), qkv[:, :, 2])


@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(513, 16, 16), (196, 12, 64)])
def test_triton_compiles_without_spills(tokens, heads, width, dtype, target):
    kernels = compile_launches(lambda: launch(2, tokens, heads, width, dtype), target)
    assert len(kernels) == 4
    assert [kernel for kernel in kernels if kernel.stack] == []


def test_more_clips_and_heads_than_fit_one_axis_of_a_grid():
    """65,544 of them; a GPU takes 65,535 blocks along the second axis of a grid."""
    grids = [grid for *_, grid in record_launches(lambda: launch(5462, 2, 12, 4, torch.float32))]
    assert grids == [(65544,)] * 4


def launch(batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype) -> None:
    from stmeta.kernels.triton.video import locality_attention as launcher

    qkv = torch.empty(batch, tokens, 3, heads, width, dtype=dtype, device="meta")
    temperature = torch.empty(heads, device="meta")
    out, stats = launcher.locality_attention(qkv, temperature, True)
    launcher.locality_attention_backward(out, qkv, temperature, out, stats, True)
