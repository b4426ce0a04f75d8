"""Self-attention with a temperature per head and without oneself, from packed projections.

Implementations: video/locality_attention in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stmeta.ops._core.args import check_dense, check_float
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.limits import at_most
from stmeta.ops._core.register import register
from stmeta.ops._core.torch_private import transform

__all__ = ["diagonal_mask", "locality_attention", "locality_attention_ref"]

_OP = "locality_attention"

# Up to this many tokens the logits stay in cache and two batched products beat the blocked kernel
# of SDPA on a CPU: forward and backward of 32 x 6 heads of 16, 128 tokens, take 8 ms against 37 ms
# in bf16 and 12 ms against 16 ms in fp32 (two cores with AVX-512). At 256 tokens SDPA wins.
SHORT = 160


def locality_attention(
    qkv: Tensor, temperature: Tensor, *, exclude_self: bool = True, backend: str = "auto"
) -> Tensor:
    """Locality self-attention (Lee et al. 2021, eq. 6-8): softmax(q k^T tau, no diagonal) v.

    It reads the output of the joint projection as it lies, and never stores the N x N weights; the
    backward makes them again.

    Args:
        qkv: [B, N, 3, H, E], queries, keys and values of H heads; fp32, bf16 or fp16 (fp64 in
            eager).
        temperature: [H], the tau of each head, which multiplies its logits.
        exclude_self: a token does not look at itself (a lone token does).
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        [B, N, H, E], dtype of `qkv`; softmax and sums are fp32.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        BackendUnavailableError: the named backend cannot run here.
    """
    check_dense(_OP, qkv=qkv, temperature=temperature)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"{_OP}: qkv must be [B, N, 3, H, E], got {list(qkv.shape)}")
    check_float(_OP, "qkv", qkv)
    if temperature.shape != qkv.shape[3:4] or temperature.device != qkv.device:
        raise ValueError(
            f"{_OP}: temperature must be [H] = [{qkv.shape[3]}] on {qkv.device} to match qkv "
            f"{list(qkv.shape)}, got {list(temperature.shape)} on {temperature.device}"
        )
    batch, _, _, heads, width = qkv.shape
    name = resolve(_OP, qkv, backend, {"B": batch, "H": heads, "E": width})
    if name == "eager":
        return locality_attention_ref(qkv, temperature, exclude_self=exclude_self)
    return run(_OP, name, qkv, temperature.float(), exclude_self)[0]


def locality_attention_ref(
    qkv: Tensor, temperature: Tensor, *, exclude_self: bool = True
) -> Tensor:
    """`locality_attention` in plain PyTorch, the fastest that we found."""
    return attend(qkv, temperature, exclude_self)


def attend(
    qkv: Tensor, temperature: Tensor, exclude_self: bool, *, products: bool = False
) -> Tensor:
    """The reference; with `products` as two of them, which have derivatives of every order."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, E] each, views
    # The temperature goes into q, N x E numbers, instead of the logits, N x N.
    q = q * temperature.to(q.dtype)[:, None, None]
    tokens = q.shape[2]
    mask = diagonal_mask(tokens, q.dtype, q.device) if exclude_self else None
    # SDPA knows neither tangents nor second derivatives.
    if products or transform() or (q.device.type == "cpu" and tokens <= SHORT):
        logits = q @ k.transpose(-1, -2)
        out = (logits if mask is None else logits + mask).softmax(-1) @ v
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2)


_masks: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def diagonal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask [N, N]: the lowest finite number on the diagonal, 0 elsewhere.

    Finite, so that a sequence of one token attends to itself instead of becoming NaN. Rows start
    at multiples of 16: CUDA's memory-efficient attention would copy the mask otherwise.
    """
    if torch.compiler.is_compiling() or transform():
        # A dict of tensors would be a guard per entry; what a transform wraps dies with it.
        return _make_mask(tokens, dtype, device)
    key = (tokens, dtype, device)
    if key not in _masks:
        if len(_masks) >= 8:  # lengths that come and go
            _masks.clear()
        # A mask made in inference mode could not be used in training later.
        with torch.inference_mode(False):
            _masks[key] = _make_mask(tokens, dtype, device)
    return _masks[key]


def _make_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    low = torch.full((tokens,), torch.finfo(dtype).min, dtype=dtype, device=device)
    return functional.pad(low.diag(), (0, -tokens % 16))[:, :tokens]


_SCHEMA = "(Tensor qkv, Tensor temperature, bool exclude_self) -> (Tensor out, Tensor stats)"
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor qkv, Tensor temperature, Tensor out, Tensor stats, bool exclude_self) "
    "-> (Tensor grad_qkv, Tensor grad_temperature)"
)


def _fake(qkv: Tensor, temperature: Tensor, exclude_self: bool) -> tuple[Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    # Largest logit of each row and the inverse of its sum, in units of the backend's own.
    stats = qkv.new_empty(batch, heads, tokens, 2, dtype=torch.float32)
    return qkv.new_empty(batch, tokens, heads, width), stats


def _backward_fake(grad: Tensor, qkv: Tensor, temperature: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return qkv.new_empty(qkv.shape), temperature.new_empty(temperature.shape)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        qkv, temperature, ctx.exclude_self = inputs
        ctx.save_for_backward(qkv, temperature, *output)
        ctx.mark_non_differentiable(output[1])

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ops.locality_attention_backward(grad, *ctx.saved_tensors, ctx.exclude_self)
        return *grads, None

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    qkv, temperature, *_ = ctx.saved_tensors
    exclude_self = ctx.exclude_self
    return lambda x, tau: attend(x, tau, exclude_self, products=True), (qkv, temperature)


def _flops(x: Any, out: Any) -> int:
    batch, tokens, _, heads, width = x.qkv
    return 4 * batch * heads * tokens**2 * width


register(
    _OP,
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    order={"cuda": ("eager",)},
    double_backward=_recompute,
    limits={"cuda": (at_most(128, "features E of a head", "E"),)},
    flops=_flops,
)
register(
    f"{_OP}_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 2 * _flops(x, out),
)
