from __future__ import annotations

import pytest
import torch

from stmeta.nn import LocalitySelfAttention
from stmeta.ops.video.locality_attention import SHORT, diagonal_mask


def plain_attention(module, x):
    """Attention head by head, as written in the paper, with replaced (not added-to) diagonal."""
    heads, dim = module.heads, module.head_dim
    q, k, v = torch.nn.functional.linear(x, module.qkv.weight, module.qkv.bias).chunk(3, dim=-1)
    outputs = []
    for h in range(heads):
        part = slice(h * dim, (h + 1) * dim)
        logits = q[..., part] @ k[..., part].transpose(1, 2)
        if not module.locality:
            logits = logits * dim**-0.5
        else:
            logits = logits * module.temperature[h]
            eye = torch.eye(x.shape[1], dtype=torch.bool)
            logits = logits.masked_fill(eye, torch.finfo(x.dtype).min)
        outputs.append(logits.softmax(-1) @ v[..., part])
    return module.proj(torch.cat(outputs, -1))


@pytest.mark.parametrize("tokens", [1, 2, 52, SHORT + 1])
@pytest.mark.parametrize("locality", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_matches_the_formula(tokens, locality, bias):
    torch.manual_seed(0)
    module = LocalitySelfAttention(
        12, heads=3, head_dim=5, qkv_bias=bias, locality=locality
    ).double()
    if locality:
        assert torch.allclose(module.temperature, torch.full((3,), 5**-0.5).double())
        torch.nn.init.uniform_(module.temperature, 0.1, 3.0)  # other values than a fixed scale has
    x = torch.randn(2, tokens, 12, dtype=torch.float64, requires_grad=True)
    ours, plain = module(x), plain_attention(module, x)
    torch.testing.assert_close(ours, plain)
    probe = torch.randn_like(ours)
    inputs = [x, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, probe),
        torch.autograd.grad(plain, inputs, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_no_token_looks_at_itself():
    torch.manual_seed(0)
    module = LocalitySelfAttention(8, heads=2, head_dim=4)
    x = torch.randn(1, 5, 8)
    # A value that only token 2 carries reaches every token but token 2.
    with torch.no_grad():
        module.qkv.weight[:16] = 0  # all logits alike
        changed = x.clone()
        changed[0, 2] += 1
        moved = (module(changed) - module(x)).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [True, True, False, True, True]


def test_mask_is_built_once_and_serves_training_after_inference():
    module = LocalitySelfAttention(8, heads=2, head_dim=4).double()  # fp64 runs in eager
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    device = torch.device("cpu")
    with torch.inference_mode():
        module(x)
        mask = diagonal_mask(6, torch.float64, device)
    module(x).sum().backward()
    assert diagonal_mask(6, torch.float64, device) is mask
    assert module.temperature.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_diagonal_mask(dtype):
    mask = diagonal_mask(19, dtype, torch.device("cpu"))
    low = torch.finfo(dtype).min
    assert torch.equal(mask, torch.diag(torch.full((19,), low, dtype=dtype)))
    assert mask.stride() == (32, 1)


def test_bf16_autocast_stays_close():
    torch.manual_seed(0)
    module = LocalitySelfAttention(16, heads=2, head_dim=8)
    x = torch.randn(2, 9, 16)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.03


def test_compiles_in_one_graph():
    torch.manual_seed(0)
    module = LocalitySelfAttention(16, heads=2, head_dim=8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for tokens in (9, SHORT + 1):
        x = torch.randn(2, tokens, 16)
        torch.testing.assert_close(compiled(x), module(x))
