"""Moves weights along the rows of a memory.

Implementations: memory/location_addressing in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.double_backward import from_saved
from stmeta.ops._core.limits import of_memory
from stmeta.ops._core.register import register

__all__ = ["location_addressing", "location_addressing_ref"]


def location_addressing(
    content: Tensor,
    previous: Tensor,
    gate: Tensor,
    shift: Tensor,
    sharpen: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Interpolate, shift around the ring of rows, sharpen (Graves et al. 2014, eq. 7-9).

    Args:
        content: [B, H, N] weights by content; fp32, bf16 or fp16 (fp64 in eager).
        previous: [B, H, N] weights of the last step.
        gate: [B, H] in [0, 1]: 1 takes `content`, 0 takes `previous`.
        shift: [B, H, S], a distribution over offsets -(S//2) ... S//2; S is odd, at most N.
        sharpen: [B, H], the exponent gamma, at least 1.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Returns:
        Weights [B, H, N], dtype of `content`. Rows sum to 1; a row of zeros stays zero.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or S is even or above N.
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "location_addressing",
        content=(content, "B H N"),
        previous=(previous, "B H N"),
        gate=(gate, "B H"),
        shift=(shift, "B H S"),
        sharpen=(sharpen, "B H"),
    )
    check_taps("location_addressing", sizes["S"], sizes["N"])
    arguments = same_dtype(
        "location_addressing", "content", content, previous, gate, shift, sharpen
    )
    name = resolve("location_addressing", content, backend, sizes)
    if name == "eager":
        return location_addressing_ref(*arguments)
    return run("location_addressing", name, *arguments)


def check_taps(op: str, taps: int, rows: int) -> None:
    """Raise ValueError unless there is an odd number of shift taps, at most one per row."""
    if taps % 2 == 0 or taps > max(rows, 1):
        raise ValueError(
            f"{op}: shift must have an odd number S of taps, at most N = {rows}, got {taps}; "
            "3 taps stand for the offsets -1, 0, 1"
        )


def location_addressing_ref(
    content: Tensor, previous: Tensor, gate: Tensor, shift: Tensor, sharpen: Tensor
) -> Tensor:
    """`location_addressing` in plain PyTorch."""
    gated = torch.lerp(previous, content, gate[:, :, None])
    taps = shift.shape[2]
    # v[i] = sum_s shift[s] * gated[i - offset_s]; roll(x, o)[i] = x[i - o].
    moved = [
        shift[:, :, s, None] * (gated.roll(s - taps // 2, dims=-1) if s != taps // 2 else gated)
        for s in range(taps)
    ]
    shifted = sum(moved[1:], moved[0]).clamp_min(0)
    # Divided by the largest first: a sharp power of small weights would vanish.
    tiny = torch.finfo(shifted.dtype).tiny
    if shifted.shape[-1] == 0:  # no rows, of which none is the largest
        return shifted
    largest = shifted.detach().amax(-1, keepdim=True).clamp_min(tiny)
    power = (shifted / largest) ** sharpen[:, :, None]
    return power / power.sum(-1, keepdim=True).clamp_min(tiny)


_SCHEMA = (
    "(Tensor content, Tensor previous, Tensor gate, Tensor shift, Tensor sharpen) -> Tensor weight"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor content, Tensor previous, Tensor gate, Tensor shift, Tensor sharpen, "
    "Tensor weight) -> (Tensor grad_content, Tensor grad_previous, Tensor grad_gate, "
    "Tensor grad_shift, Tensor grad_sharpen)"
)


def _fake(content: Tensor, *rest: Tensor) -> Tensor:
    return content.new_empty(content.shape)


def _backward_fake(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in saved[:5])


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return ops.location_addressing_backward(grad, *ctx.saved_tensors)

    return setup_context, backward


register(
    "location_addressing",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=from_saved(location_addressing_ref, 5),
    limits=of_memory("H", row_in_registers=False),
)
register(
    "location_addressing_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
)
