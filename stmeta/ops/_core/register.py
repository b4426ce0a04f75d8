"""Registers ops with torch.

An op is one schema in two namespaces with the same fake and the same autograd: `stmeta` (the
compiled extension gives its CPU and CUDA kernels) and `stmeta_triton` (a Python launcher).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from stmeta._extension import extension, extension_missing
from stmeta.ops._core.double_backward import Recompute, by_eager, formulas
from stmeta.ops._core.flops import Formula as Flops
from stmeta.ops._core.flops import count, tell_counters
from stmeta.ops._core.limits import LIMITS, Limits
from stmeta.ops._core.schema import arguments_of, results_of
from stmeta.ops._core.torch_private import (
    FAST_AUTOGRAD,
    below_autograd,
    has_dispatch_modes,
    has_kernel,
    is_batched,
    transform,
)

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
ORDER = {"cpu": ("cpu", "eager"), "cuda": ("cuda", "triton", "eager")}

Function = Callable[..., Any]
Autograd = Callable[[Any], tuple[Function, Function]]
Pair = tuple[Function, Function]  # of a forward and its backward

orders: dict[str, dict[str, tuple[str, ...]]] = {}  # op -> device type -> backends, best first
missing: dict[str, dict[str, str]] = {}  # op -> backend -> why it cannot run, "" where it can
overloads: dict[str, dict[str, Any]] = {"stmeta": {}, "stmeta_triton": {}}
functions: dict[str, dict[str, Any]] = {name: {} for name in overloads}  # the same, with autograd
_libraries = {name: torch.library.Library(name, "FRAGMENT") for name in overloads}


def register(
    op: str,
    schema: str,
    fake: Function,
    *,
    module: str,
    autograd: Autograd | None = None,
    order: dict[str, tuple[str, ...]] | None = None,
    limits: Limits | None = None,
    flops: Flops | None = None,
    double_backward: Recompute | None = None,
    on_cpu: Pair | None = None,
) -> None:
    """Register one op in both namespaces.

    Args:
        op: name of the op, which is also the name of the Triton launcher.
        schema: arguments and results, `"(Tensor x) -> Tensor"`.
        fake: computes the results' shapes, dtypes and devices.
        module: that of the op in `stmeta.ops`, as `__name__`; the Triton launcher's has the same
            name in `stmeta.kernels.triton`.
        autograd: takes a namespace (`torch.ops.stmeta` or `torch.ops.stmeta_triton`), gives
            `(setup_context, backward)` that call that namespace's backward op. `setup_context`
            gets (ctx, arguments, results), both by the schema's names. None: the op has no
            derivative (it is a backward, or its results are integers).
        order: device type -> backends, best first, where a benchmark says otherwise than `ORDER`.
        limits: backend -> rules of the sizes that its kernel takes.
        flops: counts the operations of its matrix products; None = it has none.
        double_backward: what it computed, once more in eager, for second derivatives.
        on_cpu: `(forward(ctx, *arguments), backward(ctx, *grads))` that CPU tensors take instead,
            outside of torch.compile and of torch's transforms.
    """
    launcher = module.replace("stmeta.ops", "stmeta.kernels.triton", 1)

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(launcher), op)(*args)

    if flops is not None:
        count(op, schema, flops)
    if double_backward is not None:
        formulas[op] = double_backward
    for backend, rules in (limits or {}).items():
        LIMITS[backend][op] = rules
    for namespace, library in _libraries.items():
        name = f"{namespace}::{op}"
        library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(name, fake, lib=library)
        setup, backward = (autograd or _no_derivative(op))(getattr(torch.ops, namespace))
        setup = by_schema_names(schema, setup)
        public = backward if FAST_AUTOGRAD else _twice_differentiable(op, backward)
        torch.library.register_autograd(name, public, setup_context=setup, lib=library)
        overload = getattr(getattr(torch.ops, namespace), op).default
        overloads[namespace][op] = overload
        functions[namespace][op] = None
        if autograd and FAST_AUTOGRAD:
            pair = on_cpu if namespace == "stmeta" else None
            functions[namespace][op] = _function(op, overload, setup, backward, pair)
    for device in ("CUDA", "CPU") if INTERPRET else ("CUDA",):
        _libraries["stmeta_triton"].impl(op, launch, device)
    if not op.endswith("_backward"):  # those that users call
        orders[op] = {**ORDER, **(order or {})}
        missing[op] = {"eager": "", "cpu": _why_no_kernel(op, "cpu")}
        missing[op] |= {"triton": _why_no_triton(launcher), "cuda": _why_no_kernel(op, "cuda")}


def by_schema_names(schema: str, setup: Function) -> Function:
    """`setup` with arguments and results by the schema's names."""
    arguments, results = arguments_of(schema), results_of(schema)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        setup(ctx, arguments(*inputs), results(*output) if results else output)

    return setup_context


def _function(
    op: str, overload: Any, setup: Function, formula: Function, on_cpu: Pair | None
) -> Any:
    """The op and its derivative as an autograd Function.

    Torch's own path from `register_autograd` takes 60 microseconds more, forward and backward,
    which is as much as a step of a small memory. It serves torch.compile, export and torch.func.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        with below_autograd():
            output = overload(*arguments)
        if any(ctx.needs_input_grad):
            setup(ctx, arguments, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        within = transform() or any(map(is_batched, grads))
        if (within or torch.is_grad_enabled()) and op in formulas:
            return by_eager(op, ctx, grads)
        if within:
            raise NotImplementedError(NO_RULE.format(op=op))
        if torch.is_grad_enabled():  # for a second derivative, which the formula refuses
            return formula(ctx, *grads)
        if has_dispatch_modes():  # a counter may look at the backward alone
            tell_counters()
        # Before autograd is off: where a checkpoint holds them, this computes its part again.
        unpacked = _Unpacked(ctx)
        with below_autograd():
            return formula(unpacked, *grads)

    if on_cpu is not None:
        forward, backward = _or_on_cpu(op, (forward, backward), on_cpu)
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(overload.name().replace("::", "_"), (torch.autograd.Function,), members)


def _or_on_cpu(op: str, usual: Pair, on_cpu: Pair) -> Pair:
    """The pair of a Function, or another one where the tensors are on a CPU."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        ctx.on_cpu = arguments[0].is_cpu
        return (on_cpu if ctx.on_cpu else usual)[0](ctx, *arguments)

    def backward(ctx: Any, *grads: Any) -> Any:
        if not ctx.on_cpu:
            return usual[1](ctx, *grads)
        if transform() or any(map(is_batched, grads)):
            raise NotImplementedError(NO_RULE.format(op=op))
        return on_cpu[1](ctx, *grads)

    return forward, backward


def _twice_differentiable(op: str, formula: Function) -> Function:
    """A backward for `torch.library`'s autograd alone, with second derivatives."""

    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and op in formulas and not torch.compiler.is_compiling():
            return by_eager(op, ctx, grads)
        return formula(ctx, *grads)

    return backward


class _Unpacked:
    """The context of a backward with its saved tensors at hand."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


NO_RULE = "{op}: the fused op has no second derivative; use backend='eager' for it"


def _no_derivative(op: str) -> Autograd:
    """Of a backward, or of an op whose results are integers."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(NO_RULE.format(op=op.removesuffix("_backward")))

    return lambda _: (lambda ctx, inputs, output: None, backward)


def _why_no_kernel(op: str, backend: str) -> str:
    if extension is None:
        return extension_missing
    if backend == "cuda" and not extension.build_info()["cuda"]:
        return "stmeta._C was built without CUDA; rebuild with nvcc and a CUDA build of torch"
    if has_kernel(op, backend.upper()):
        return ""
    return f"stmeta._C has no {backend} kernel of {op}; rebuild it if the kernel is in csrc"


def _why_no_triton(launcher: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton` (Linux only)"
    if importlib.util.find_spec(launcher) is None:
        return f"there is no Triton kernel {launcher.rpartition('.')[2]}"
    return ""
