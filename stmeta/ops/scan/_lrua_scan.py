"""Schemas, fakes and derivatives of lrua_scan; lrua_scan.py says what it computes.

There are two pairs of ops. `lrua_scan` keeps the cells and weights of all steps and writes over
nothing: it serves GPUs, torch.compile and torch.func. On a CPU, `lrua_scan` of Python calls
`lrua_scan_lean` instead, of which nobody else sees what it kept: its backward finds cells and
weights again, and writes the gradients of gates and heads over those.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from stmeta.ops._core.flops import count, of_controller
from stmeta.ops._core.limits import Sizes, joined, some_heads
from stmeta.ops._core.register import NO_RULE, register
from stmeta.ops._core.schema import arguments_of, results_of
from stmeta.ops._core.torch_private import below_autograd, keeps_graph
from stmeta.ops.scan._common import LIMITS, num_checkpoints

_STATE = (
    "Tensor memory, Tensor usage, Tensor previous, Tensor reads, Tensor h, Tensor c, "
    "Tensor? lengths"
)
_OPTIONS = "float decay, bool read_first, bool shared, bool strength, bool write_key, float eps"
_KEPT = (
    "Tensor activated, Tensor cells, Tensor heads, Tensor weights, Tensor rows, Tensor checkpoints"
)
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
        new(batch, num_checkpoints(steps), rows, memory.shape[2]),
    )


def _backward_fake(
    grad_y: Tensor, grad_memory: Tensor, grad_weight: Tensor, grad_c: Tensor, add: Any,
    recurrent: Tensor, interface: Tensor, memory: Tensor, previous: Tensor, c: Tensor,
    lengths: Any, activated: Tensor, cells: Tensor, heads: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    reads = grad_y.new_empty(grad_y.shape[0], grad_y.shape[2] - c.shape[1])
    batch, steps = activated.shape[:2]
    written = activated.new_empty(batch, steps, previous.shape[1], memory.shape[2])
    like = (memory, previous, reads, c, c)
    gates = (activated.new_empty(activated.shape), heads.new_empty(heads.shape))
    return *gates, written, *(x.new_empty(x.shape) for x in like)


class _Saved(NamedTuple):
    """What the backward takes: first what it takes as it is."""

    add: Tensor | None
    recurrent: Tensor
    interface: Tensor
    memory: Tensor
    previous: Tensor
    c: Tensor
    lengths: Tensor | None
    activated: Tensor
    cells: Tensor
    heads: Tensor
    weights: Tensor
    rows: Tensor
    checkpoints: Tensor
    reads: Tensor
    h: Tensor
    y: Tensor

    def taken(self) -> tuple[Any, ...]:
        """What the backward op takes."""
        return self[: self._fields.index("reads")]

    def first(self) -> Tensor:
        """What the controller takes at the first step, [B, K]."""
        return torch.cat([self.h, self.reads], 1)[:, : self.recurrent.shape[1]]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, out = inputs, output
    ctx.options = (x.decay, x.read_first, x.shared, x.strength, x.write_key, x.eps)
    ctx.extra = (x.key is not None, x.add is not None)
    kept = (out.activated, out.cells, out.heads, out.weights, out.rows, out.checkpoints)
    given = (x.add, x.recurrent, x.interface, x.memory, x.previous, x.c, x.lengths)
    ctx.save_for_backward(*_Saved(*given, *kept, x.reads, x.h, out.y))
    ctx.mark_non_differentiable(out.usage_out, *kept)
    ctx.set_materialize_grads(False)  # or torch makes zeros as large as all that is kept


def _given(saved: _Saved, grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Gradients of y, memory, weight and c, zeros where there are none."""
    y, memory, _, weight, c, *_ = grads
    pairs = ((y, saved.y), (memory, saved.memory), (weight, saved.previous), (c, saved.c))
    return [torch.zeros_like(like) if grad is None else grad for grad, like in pairs]


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
    given = torch.empty(*y.shape[:2], first.shape[1], dtype=dtype, device=y.device)
    given[:, 0] = first
    given[:, 1:] = y[:, :-1, : first.shape[1]]
    return _product(d_gates.flatten(0, 1), given.flatten(0, 1), dtype)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x = _Saved(*ctx.saved_tensors)
        d_gates, d_heads, d_written, *d_state = ops.lrua_scan_backward(
            *_given(x, grads), *x.taken(), *ctx.options
        )
        d_recurrent = _of_recurrent(d_gates, x.y, x.first(), x.recurrent.dtype)
        return _gradients(ctx, d_gates, d_heads, d_written, d_state, d_recurrent, x.y)

    return _save, backward


def _flops(x: Any, out: Any) -> int:
    steps = 6 * x.gates[1] * prod(x.memory) * x.previous[1]
    return of_controller(x, x.gates) + steps


def _backward_flops(x: Any, out: Any) -> int:
    """Without the gradients of the weights, which are products of torch."""
    steps = 12 * x.activated[1] * prod(x.memory) * x.previous[1]
    return of_controller(x, x.activated) + steps


def _single(sizes: Sizes) -> str:
    rule = "it multiplies in fp32 and recurrent and interface are bf16; use .float()"
    return rule if sizes["bf16"] else ""


_LIMITS = joined(
    LIMITS,
    dict.fromkeys(("cpu", "cuda"), (some_heads("H"),)),
    dict.fromkeys(("cuda", "triton"), (_single,)),
)
_MODULE = "stmeta.ops.scan.lrua_scan"


# ---- what a CPU runs ----

_LEAN_BACKWARD_SCHEMA = (
    _BACKWARD_SCHEMA.replace("Tensor activated", "Tensor(a!) activated")
    .replace("Tensor heads", "Tensor(b!) heads")
    .replace("Tensor d_gates, Tensor d_heads, ", "")
)
_Arguments, _Results = arguments_of(_SCHEMA), results_of(_SCHEMA)
_lean = Library("stmeta", "FRAGMENT")
_lean.define("lrua_scan_lean" + _SCHEMA)
_lean.define("lrua_scan_lean_backward" + _LEAN_BACKWARD_SCHEMA)
count("lrua_scan_lean", _SCHEMA, _flops)
count("lrua_scan_lean_backward", _BACKWARD_SCHEMA, _backward_flops)


def _lean_forward(ctx: Any, *arguments: Any) -> Any:
    with below_autograd():
        output = torch.ops.stmeta.lrua_scan_lean(*arguments)
    _save(ctx, _Arguments(*arguments), _Results(*output))
    return output


def _lean_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # for a second derivative
        return _Once.apply(ctx, *grads, *ctx.saved_tensors)
    return _lean_gradients(ctx, *grads)


class _Once(torch.autograd.Function):
    """A backward of which the derivative is refused."""

    @staticmethod
    def forward(ctx: Any, scan: Any, *tensors: Tensor | None) -> Any:
        return _lean_gradients(scan, *tensors[: len(tensors) - len(scan.saved_tensors)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(NO_RULE.format(op="lrua_scan"))


def _lean_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x = _Saved(*ctx.saved_tensors)
    if keeps_graph():  # another backward may come over the same graph
        x = x._replace(activated=x.activated.clone(), heads=x.heads.clone())
    with below_autograd():
        d_written, *d_state = torch.ops.stmeta.lrua_scan_lean_backward(
            *_given(x, grads), *x.taken(), *ctx.options
        )
    if x.recurrent.dtype == torch.float32:
        d_recurrent = _of_recurrent_in_place(x.activated, x.y, x.first())
    else:
        d_recurrent = _of_recurrent(x.activated, x.y, x.first(), x.recurrent.dtype)
    return _gradients(ctx, x.activated, x.heads, d_written, d_state, d_recurrent, x.y)


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


register(
    *("lrua_scan", _SCHEMA, _fake),
    module=_MODULE,
    autograd=_autograd,
    limits=_LIMITS,
    flops=_flops,
    on_cpu=(_lean_forward, _lean_backward),
)
register(
    *("lrua_scan_backward", _BACKWARD_SCHEMA, _backward_fake),
    module=_MODULE,
    flops=_backward_flops,
)
