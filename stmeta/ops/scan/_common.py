"""What lrua_scan and ntm_scan ask of their arguments alike, and their point-wise LSTM."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.ops._core.args import bounds, check_shapes
from stmeta.ops._core.limits import Rule, Sizes, of_memory


def check_tensors(
    op: str,
    memory: Tensor,
    tensors: Mapping[str, tuple[Tensor | None, str]],
    rounded: Collection[str] = (),
) -> None:
    """Shapes by their letters, and one dtype of fp32 or fp64, or bf16 of all that are `rounded`.

    Raises:
        ValueError: a tensor does not fit.
    """
    present = {name: (x, letters) for name, (x, letters) in tensors.items() if x is not None}
    for name in tensors.keys() - present.keys() - {"key", "add"}:  # what may be missing
        raise ValueError(f"{op}: {name} must be a tensor, got None")
    check_shapes(op, **present)
    in_bf16 = {name for name in rounded if present[name][0].dtype == torch.bfloat16}
    if in_bf16 and len(in_bf16) < len(rounded):
        raise ValueError(f"{op}: {' and '.join(rounded)} must be in bf16 both, or none of them")
    for name, (tensor, _) in present.items():
        if name in in_bf16:
            continue
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != memory.dtype:
            raise ValueError(
                f"{op}: {name} must be fp32 (or fp64, all of them), as a sequence adds to its "
                f"memory step by step; got {tensor.dtype} beside a memory in {memory.dtype}; use "
                ".float()"
            )


def check_recurrent(op: str, recurrent: Tensor, hidden: int, read: int) -> None:
    """[4 H, K], where the controller is fed its output, and what was read or not.

    Raises:
        ValueError: another shape.
    """
    widths = (hidden, hidden + read)
    if recurrent.shape[0] != 4 * hidden or recurrent.shape[1] not in widths:
        raise ValueError(
            f"{op}: recurrent must be [4 H, K] with H = {hidden} and K = {widths[0]} or {widths[1]}"
            f", got {list(recurrent.shape)}"
        )


def check_lengths(op: str, lengths: Tensor | None, gates: Tensor) -> None:
    """Int64 [B] in 0 ... T; values are looked at on a CPU alone, where that waits for nothing.

    Raises:
        ValueError: another shape or dtype, or a length out of range.
    """
    if lengths is None:
        return
    batch, steps = gates.shape[:2]
    if lengths.shape != (batch,) or lengths.dtype != torch.int64 or lengths.device != gates.device:
        raise ValueError(
            f"{op}: lengths must be int64 [B] = [{batch}] on {gates.device}, got "
            f"{lengths.dtype} {list(lengths.shape)} on {lengths.device}"
        )
    low, high = bounds(lengths)
    if low < 0 or high > steps:
        raise ValueError(f"{op}: lengths must be in 0 ... T = {steps}, got {low} ... {high}")


def within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """X [B, T, ...] with zeros behind the end of each sequence, whatever is there.

    A number there that is not finite would reach the gradients of weights: zero times NaN is NaN.
    """
    if lengths is None:
        return x
    on = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(on.view(*on.shape, *[1] * (x.ndim - 2)), x, 0)


def controller_step(
    gates: Tensor, recurrent: Tensor, reads: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of the LSTM: its new h and c, [B, H] each.

    Args:
        gates: [B, 4 H], of the inputs: input, forget, cell, output.
        recurrent: [4 H, K]; K tells whether the controller sees what was read. In bf16, what it
            multiplies is rounded to bf16 as well.
        reads: [B, R * M].
        h: [B, H].
        c: [B, H].
    """
    given = torch.cat([h, reads], 1) if recurrent.shape[1] > h.shape[1] else h
    i, f, g, o = (gates + rounded_linear(given, recurrent)).chunk(4, dim=1)
    c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` in the dtype of x, which is rounded to the dtype of the weight first."""
    return F.linear(x.to(weight.dtype).to(x.dtype), weight.to(x.dtype), bias)


def num_checkpoints(steps: int) -> int:
    """Memories that a forward keeps: one every ceil(sqrt(T)) steps."""
    every = 1
    while every * every < steps:
        every += 1
    return -(-steps // every)


def _in_registers(sizes: Sizes) -> str:
    """Of Triton's programs, which keep the memory of an episode in registers."""
    rows, width, heads = [1 << max(sizes[x] - 1, 0).bit_length() for x in "NMH"]
    if sizes["H"] > 0 and max(rows * width, 4 * rows * heads) <= 8192:
        return ""
    return (
        "it keeps the memory in registers: N * M and 4 N H, each size rounded up to a power of "
        f"two, must be at most 8192 and H at least 1, got [N, M] = [{sizes['N']}, {sizes['M']}] "
        f"and H = {sizes['H']} heads"
    )


LIMITS: dict[str, tuple[Rule, ...]] = of_memory("H") | {"triton": (_in_registers,)}  # H: all heads
