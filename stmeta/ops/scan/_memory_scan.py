"""Schemas, fakes and derivatives of memory_scan; memory_scan.py says what it computes.

There are two pairs of ops. `memory_scan` keeps the cells and weights of all steps and writes over
nothing: it serves GPUs, torch.compile and torch.func. On a CPU, `memory_scan` of Python calls
`memory_scan_lean` instead, of which nobody else sees what it kept: its backward finds cells and
weights again, and writes the gradients of gates and heads over those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from stmeta.ops._core.register import NO_RULE, functions, register
from stmeta.ops._core.torch_private import is_batched, transform
from stmeta.ops.scan._common import marks

_STATE = (
    "Tensor memory, Tensor usage, Tensor previous, Tensor reads, Tensor h, Tensor c, "
    "Tensor? lengths"
)
_OPTIONS = "float decay, bool read_first, bool shared, bool strength, bool write_key, float eps"
_KEPT = "Tensor opened, Tensor cells, Tensor heads, Tensor weights, Tensor rows, Tensor marks"
_SCHEMA = (
    "(Tensor gates, Tensor? key, Tensor? add, Tensor recurrent, Tensor interface, Tensor bias, "
    f"{_STATE}, {_OPTIONS}) "
    f"-> (Tensor y, Tensor memory_out, Tensor usage_out, Tensor weight_out, Tensor c_out, {_KEPT})"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_y, Tensor grad_memory, Tensor grad_weight, Tensor grad_c, Tensor? add, "
    "Tensor recurrent, Tensor interface, Tensor memory, Tensor previous, Tensor c, "
    f"Tensor? lengths, {_KEPT}, {_OPTIONS}) "
    "-> (Tensor d_gates, Tensor d_heads, Tensor d_written, Tensor d_memory, Tensor d_previous, "
    "Tensor d_reads, Tensor d_h, Tensor d_c)"
)


def _fake(
    gates: Tensor, key: Any, add: Any, recurrent: Tensor, interface: Tensor, bias: Tensor,
    memory: Tensor, usage: Tensor, previous: Tensor, reads: Tensor, h: Tensor, c: Tensor,
    lengths: Any, *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, steps = gates.shape[:2]
    heads, rows = previous.shape[1:]
    hidden = c.shape[1]
    new = gates.new_empty
    return (
        new(batch, steps, hidden + heads * memory.shape[2]),
        *(x.new_empty(x.shape) for x in (memory, usage, previous, c, gates)),
        new(batch, steps, hidden),
        new(batch, steps, interface.shape[0]),
        new(batch, steps, heads, rows),
        new(batch, steps, heads, dtype=torch.int64),
        new(batch, marks(steps), rows, memory.shape[2]),
    )


def _backward_fake(
    grad_y: Tensor, grad_memory: Tensor, grad_weight: Tensor, grad_c: Tensor, add: Any,
    recurrent: Tensor, interface: Tensor, memory: Tensor, previous: Tensor, c: Tensor,
    lengths: Any, opened: Tensor, cells: Tensor, heads: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    reads = grad_y.new_empty(grad_y.shape[0], grad_y.shape[2] - c.shape[1])
    batch, steps = opened.shape[:2]
    written = opened.new_empty(batch, steps, previous.shape[1], memory.shape[2])
    like = (memory, previous, reads, c, c)
    gates = (opened.new_empty(opened.shape), heads.new_empty(heads.shape))
    return *gates, written, *(x.new_empty(x.shape) for x in like)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, key, add, recurrent, interface, _, memory, _, *state = inputs[:13]
    previous, reads, h, c, lengths = state
    ctx.options, ctx.extra = inputs[13:], (key is not None, add is not None)
    ctx.save_for_backward(
        *(add, recurrent, interface, memory, previous, c, lengths, reads, h, output[0]),
        *output[5:],
    )
    ctx.mark_non_differentiable(output[2], *output[5:])
    ctx.set_materialize_grads(False)  # or torch makes zeros as large as all that is kept


def _given(ctx: Any, grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Gradients of y, memory, weight and c, zeros where there are none."""
    memory, previous, c, y = (ctx.saved_tensors[k] for k in (3, 4, 5, 9))
    likes = zip((grads[k] for k in (0, 1, 3, 4)), (y, memory, previous, c), strict=True)
    return [torch.zeros_like(like) if grad is None else grad for grad, like in likes]


def _gradients(
    ctx: Any, d_gates: Tensor, d_heads: Tensor, d_written: Tensor, d_state: list[Tensor],
    d_recurrent: Tensor, y: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of all inputs, from those of gates, raw heads and what was written."""
    d_memory, d_previous, d_reads, d_h, d_c = d_state
    hidden, heads = d_h.shape[1], d_previous.shape[1]
    of_heads = d_heads.flatten(0, 1)
    of_key = d_heads.unflatten(2, (heads, d_heads.shape[2] // max(heads, 1)))
    of_key = of_key[..., : d_memory.shape[2]]
    return (
        d_gates,
        of_key.contiguous() if ctx.extra[0] else None,
        d_written if ctx.extra[1] else None,
        d_recurrent,
        _product(of_heads, y.flatten(0, 1)[:, :hidden], d_recurrent.dtype),
        of_heads.sum(0),
        *(d_memory, None, d_previous, d_reads, d_h, d_c),
        *[None] * 7,
    )


def _product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x^T y, of numbers in `dtype`."""
    return x.to(dtype).t() @ y.to(dtype)


def _of_recurrent(d_gates: Tensor, y: Tensor, first: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of `recurrent`: step t is fed with y of step t - 1, the first step with `first`."""
    fed = torch.empty(*y.shape[:2], first.shape[1], dtype=dtype, device=y.device)
    fed[:, 0] = first
    fed[:, 1:] = y[:, :-1, : first.shape[1]]
    return _product(d_gates.flatten(0, 1), fed.flatten(0, 1), dtype)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        add, recurrent, interface, memory, previous, c, lengths, *rest = ctx.saved_tensors
        reads, h, y, *kept = rest
        d_gates, d_heads, d_written, *d_state = ops.memory_scan_backward(
            *_given(ctx, grads),
            add,
            *(recurrent, interface, memory, previous, c, lengths, *kept, *ctx.options),
        )
        first = torch.cat([h, reads], 1)[:, : recurrent.shape[1]]
        d_recurrent = _of_recurrent(d_gates, y, first, recurrent.dtype)
        return _gradients(ctx, d_gates, d_heads, d_written, d_state, d_recurrent, y)

    return _save, backward


register("memory_scan", _SCHEMA, _fake, module="stmeta.ops.scan.memory_scan", autograd=_autograd)
register(
    "memory_scan_backward", _BACKWARD_SCHEMA, _backward_fake, module="stmeta.ops.scan.memory_scan"
)


# ---- what a CPU runs ----

_lean = Library("stmeta", "FRAGMENT")
_lean.define("memory_scan_lean" + _SCHEMA)
_lean.define(
    "memory_scan_lean_backward"
    + _BACKWARD_SCHEMA.replace("Tensor opened", "Tensor(a!) opened")
    .replace("Tensor heads", "Tensor(b!) heads")
    .replace("Tensor d_gates, Tensor d_heads, ", "")
)
_General = functions["stmeta"]["memory_scan"]


class _Scan(_General):
    """The Function that `run` applies to an episode: the lean ops on a CPU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        if not inputs[0].is_cpu:
            return _General.forward(ctx, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.stmeta.memory_scan_lean(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if not ctx.saved_tensors[3].is_cpu:
            return _General.backward(ctx, *grads)
        if transform() or any(map(is_batched, grads)):
            raise NotImplementedError(NO_RULE.format(op="memory_scan"))
        if torch.is_grad_enabled():  # for a second derivative
            return _Once.apply(ctx, *grads, *ctx.saved_tensors)
        return _lean_backward(ctx, *grads)


class _Once(torch.autograd.Function):
    """A backward of which the derivative is refused."""

    @staticmethod
    def forward(ctx: Any, scan: Any, *tensors: Tensor | None) -> Any:
        return _lean_backward(scan, *tensors[: len(tensors) - len(scan.saved_tensors)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(NO_RULE.format(op="memory_scan"))


def _lean_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    add, recurrent, interface, memory, previous, c, lengths, *rest = ctx.saved_tensors
    reads, h, y, opened, cells, heads, *kept = rest
    # Whether another backward will come over the same graph.
    if torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore
        opened, heads = opened.clone(), heads.clone()
    with torch._C._AutoDispatchBelowAutograd():
        d_written, *d_state = torch.ops.stmeta.memory_scan_lean_backward(
            *(*_given(ctx, grads), add, recurrent, interface, memory),
            *(previous, c, lengths, opened, cells, heads, *kept, *ctx.options),
        )
    first = torch.cat([h, reads], 1)[:, : recurrent.shape[1]]
    if recurrent.dtype == torch.float32:
        d_recurrent = _of_recurrent_in_place(opened, y, first)
    else:
        d_recurrent = _of_recurrent(opened, y, first, recurrent.dtype)
    return _gradients(ctx, opened, heads, d_written, d_state, d_recurrent, y)


def _of_recurrent_in_place(d_gates: Tensor, y: Tensor, first: Tensor) -> Tensor:
    """The same as one product of all rows and the rows before them, without a copy of y.

    The rows of the first steps are taken out for its time: before each lies another episode's last.
    """
    d_first = d_gates[:, 0].clone()
    d_gates[:, 0] = 0
    before = y.flatten(0, 1)[:-1, : first.shape[1]]
    result = (d_gates.flatten(0, 1)[1:].t() @ before).addmm_(d_first.t(), first)
    d_gates[:, 0] = d_first
    return result


functions["stmeta"]["memory_scan"] = _Scan
