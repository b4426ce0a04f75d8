"""One step of an NTM memory: address, write and read in one pass over the memory.

Implementations: memory/ntm_step in csrc/cpu, csrc/cuda and kernels/triton.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from stmeta.ops._core.args import check_shapes, same_dtype
from stmeta.ops._core.dispatch import resolve, run
from stmeta.ops._core.limits import of_memory
from stmeta.ops._core.register import register
from stmeta.ops.memory.content_addressing import EPS, content_addressing_ref
from stmeta.ops.memory.erase_add import erase_add_ref
from stmeta.ops.memory.location_addressing import check_taps, location_addressing_ref
from stmeta.ops.memory.memory_read import memory_read_ref

__all__ = ["NTMStep", "ntm_step", "ntm_step_ref"]


class NTMStep(NamedTuple):
    """What one step of an NTM memory gives."""

    memory: Tensor
    """[B, N, M], after the write."""
    weight: Tensor
    """[B, H, N], where each head looked; the `previous` of the next step."""
    read: Tensor
    """[B, R, M], what the read heads read."""


def ntm_step(
    memory: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift: Tensor,
    sharpen: Tensor,
    erase: Tensor,
    add: Tensor,
    *,
    reads: int | None = None,
    read_first: bool = True,
    eps: float = EPS,
    backend: str = "auto",
) -> NTMStep:
    """Address by content and location, erase and add, read (Graves et al. 2014, eq. 2-9).

    All heads address the memory as it came in. The first R of the H heads read and the last W
    write; a head may do both.

    Args:
        memory: [B, N, M]; fp32, bf16 or fp16 (fp64 in eager).
        previous: [B, H, N] weights of the last step.
        key: [B, H, M].
        strength: [B, H], at least 0.
        gate: [B, H] in [0, 1]: 1 takes the weights by content, 0 takes `previous`.
        shift: [B, H, S], a distribution over offsets -(S//2) ... S//2; S is odd, at most N.
        sharpen: [B, H], at least 1.
        erase: [B, W, M] in [0, 1].
        add: [B, W, M].
        reads: R. Default: the heads that do not write, or all H where every head writes.
        read_first: read the memory as it was before the write.
        eps: added to the norms of the cosine.
        backend: "auto", "eager", "cpu", "triton" or "cuda".

    Raises:
        ValueError: shapes, dtypes or devices disagree, or R or W is not in [1, H].
        BackendUnavailableError: the named backend cannot run here.
    """
    sizes = check_shapes(
        "ntm_step",
        memory=(memory, "B N M"),
        previous=(previous, "B H N"),
        key=(key, "B H M"),
        strength=(strength, "B H"),
        gate=(gate, "B H"),
        shift=(shift, "B H S"),
        sharpen=(sharpen, "B H"),
        erase=(erase, "B W M"),
        add=(add, "B W M"),
    )
    check_taps("ntm_step", sizes["S"], sizes["N"])
    heads, writes = sizes["H"], sizes["W"]
    if reads is None:
        reads = heads - writes or heads
    if not (1 <= reads <= heads and 1 <= writes <= heads):
        raise ValueError(
            f"ntm_step: reads and the W of erase must be in [1, H] = [1, {heads}], "
            f"got {reads} and {writes}; the first heads read, the last ones write"
        )
    arguments = same_dtype(
        "ntm_step", "memory", memory, previous, key, strength, gate, shift, sharpen, erase, add
    )
    name = resolve("ntm_step", memory, backend, sizes)
    if name == "eager":
        return ntm_step_ref(*arguments, reads=reads, read_first=read_first, eps=eps)
    return NTMStep(*run("ntm_step", name, *arguments, reads, read_first, eps)[:3])


def ntm_step_ref(
    memory: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift: Tensor,
    sharpen: Tensor,
    erase: Tensor,
    add: Tensor,
    *,
    reads: int,
    read_first: bool = True,
    eps: float = EPS,
) -> NTMStep:
    """`ntm_step` in plain PyTorch: the four steps one after the other."""
    content = content_addressing_ref(memory, key, strength, eps=eps)
    weight = location_addressing_ref(content, previous, gate, shift, sharpen)
    written = erase_add_ref(memory, weight[:, weight.shape[1] - erase.shape[1] :], erase, add)
    read = memory_read_ref(memory if read_first else written, weight[:, :reads])
    return NTMStep(written, weight, read)


_INPUTS = ("memory", "previous", "key", "strength", "gate", "shift", "sharpen", "erase", "add")
_SCHEMA = (
    "(Tensor memory, Tensor previous, Tensor key, Tensor strength, Tensor gate, Tensor shift, "
    "Tensor sharpen, Tensor erase, Tensor add, int reads, bool read_first, float eps) "
    "-> (Tensor memory_out, Tensor weight, Tensor read, Tensor content)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_memory, Tensor grad_weight, Tensor grad_read, Tensor memory, Tensor previous, "
    "Tensor key, Tensor strength, Tensor gate, Tensor shift, Tensor sharpen, Tensor erase, "
    "Tensor add, Tensor weight, Tensor content, int reads, bool read_first, float eps) "
    "-> (Tensor d_memory, Tensor d_previous, Tensor d_key, Tensor d_strength, Tensor d_gate, "
    "Tensor d_shift, Tensor d_sharpen, Tensor d_erase, Tensor d_add)"
)


def _fake(memory: Tensor, previous: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, reads, _, _ = rest
    read = memory.new_empty(memory.shape[0], reads, memory.shape[2])
    weight = memory.new_empty(previous.shape)
    return memory.new_empty(memory.shape), weight, read, memory.new_empty(previous.shape)


def _backward_fake(grad_memory: Any, grad_weight: Any, grad_read: Any, *rest: Any) -> Any:
    inputs = rest[: len(_INPUTS)]
    return tuple(x.new_empty(x.shape) for x in inputs)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options = (inputs.reads, inputs.read_first, inputs.eps)
        ctx.save_for_backward(*inputs[: len(_INPUTS)], output.weight, output.content)
        ctx.mark_non_differentiable(output.content)

    def backward(
        ctx: Any, memory: Tensor, weight: Tensor, read: Tensor, content: Any
    ) -> tuple[Tensor | None, ...]:
        d = ops.ntm_step_backward(memory, weight, read, *ctx.saved_tensors, *ctx.options)
        return *d, None, None, None

    return setup_context, backward


def _recompute(ctx: Any, grads: Any) -> Any:
    reads, read_first, eps = ctx.options

    def step(*tensors: Tensor) -> Any:
        return ntm_step_ref(*tensors, reads=reads, read_first=read_first, eps=eps)

    return step, ctx.saved_tensors[: len(_INPUTS)]


def _flops(x: Any, out: Any) -> int:
    """Heads compare, W of them write, R read."""
    return 2 * prod(x.memory) * (x.previous[1] + x.erase[1] + x.reads)


register(
    "ntm_step",
    _SCHEMA,
    _fake,
    module=__name__,
    autograd=_autograd,
    double_backward=_recompute,
    limits=of_memory("H"),
    flops=_flops,
)
register(
    "ntm_step_backward",
    _BACKWARD_SCHEMA,
    _backward_fake,
    module=__name__,
    flops=lambda x, out: 2 * _flops(x, out),
)
