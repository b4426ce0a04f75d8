"""Registers ops with torch.

An op is one schema in two namespaces with the same fake and the same autograd: `stmeta` (the
compiled extension gives its CPU and CUDA kernels) and `stmeta_triton` (a Python launcher).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stmeta._extension import extension, extension_missing
from stmeta.ops._core.flops import tell_counters
from stmeta.ops._core.torch_private import has_dispatch_modes, is_batched, transform

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
ORDER = {"cpu": ("cpu", "eager"), "cuda": ("cuda", "triton", "eager")}

Formula = Callable[[Any], tuple[Callable[..., Any], Callable[..., Any]]]

orders: dict[str, dict[str, tuple[str, ...]]] = {}  # op -> device type -> backends, best first
missing: dict[str, dict[str, str]] = {}  # op -> backend -> why it cannot run, "" where it can
overloads: dict[str, dict[str, Any]] = {"stmeta": {}, "stmeta_triton": {}}
functions: dict[str, dict[str, Any]] = {name: {} for name in overloads}  # the same, with autograd
# op -> (ctx, grads) -> what it computes in eager, and the arguments for it (`double_backward.py`)
again: dict[str, Callable[..., tuple[Callable[..., Any], Sequence[Any]]]] = {}
_libraries = {name: torch.library.Library(name, "FRAGMENT") for name in overloads}


def register(
    op: str,
    schema: str,
    fake: Callable[..., Any],
    *,
    module: str,
    autograd: Formula | None = None,
    order: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Register one op in both namespaces.

    Args:
        op: name of the op, which is also the name of the Triton launcher.
        schema: arguments and results, `"(Tensor x) -> Tensor"`.
        fake: computes the results' shapes, dtypes and devices.
        module: that of the op in `stmeta.ops`, as `__name__`; the Triton launcher's has the same
            name in `stmeta.kernels.triton`.
        autograd: takes a namespace (`torch.ops.stmeta` or `torch.ops.stmeta_triton`), gives
            `(setup_context, backward)` that call that namespace's backward op. None: the op has
            no derivative (it is a backward, or its results are integers).
        order: device type -> backends, best first, where a benchmark says otherwise than `ORDER`.
    """
    launcher = module.replace("stmeta.ops", "stmeta.kernels.triton", 1)

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(launcher), op)(*args)

    for namespace, library in _libraries.items():
        name = f"{namespace}::{op}"
        library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(name, fake, lib=library)
        setup, backward = (autograd or _no_derivative(op))(getattr(torch.ops, namespace))
        torch.library.register_autograd(name, backward, setup_context=setup, lib=library)
        overload = getattr(getattr(torch.ops, namespace), op).default
        overloads[namespace][op] = overload
        functions[namespace][op] = _function(op, overload, setup, backward) if autograd else None
    for device in ("CUDA", "CPU") if INTERPRET else ("CUDA",):
        _libraries["stmeta_triton"].impl(op, launch, device)
    if not op.endswith("_backward"):  # those that users call
        orders[op] = {**ORDER, **(order or {})}
        missing[op] = {"eager": "", "cpu": _why_no_kernel(op, "cpu")}
        missing[op] |= {"triton": _why_no_triton(launcher), "cuda": _why_no_kernel(op, "cuda")}


def _function(
    op: str, overload: Any, setup: Callable[..., Any], formula: Callable[..., Any]
) -> Any:
    """The op and its derivative as an autograd Function.

    Torch's own path from `register_autograd` takes 60 microseconds more, forward and backward,
    which is as much as a step of a small memory. It serves torch.compile, export and torch.func.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = overload(*arguments)
        setup(ctx, arguments, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        within = transform() or any(map(is_batched, grads))
        if (within or torch.is_grad_enabled()) and op in again:
            return _by_eager(op, ctx, grads)
        if within:
            raise NotImplementedError(NO_RULE.format(op=op))
        if torch.is_grad_enabled():  # for a second derivative, which the formula refuses
            return formula(ctx, *grads)
        if has_dispatch_modes():  # a counter may look at the backward alone
            tell_counters()
        # Before autograd is off: where a checkpoint holds them, this computes its part again.
        unpacked = _Unpacked(ctx)
        with torch._C._AutoDispatchBelowAutograd():
            return formula(unpacked, *grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(overload.name().replace("::", "_"), (torch.autograd.Function,), members)


def _by_eager(op: str, ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients of all arguments, which have derivatives themselves."""
    function, inputs = again[op](ctx, grads)
    recorded = torch.is_grad_enabled()
    needs = ctx.needs_input_grad
    with torch.enable_grad():
        # Aliases, as one argument may come from another: each gets what is its own.
        leaves = [
            (x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_())
            if need
            else x
            for x, need in zip(inputs, needs, strict=False)
        ]
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        pairs = [
            (x, grad)
            for x, grad in zip(outputs, grads, strict=False)
            if x.requires_grad and grad is not None
        ]
        wanted = [x for x, need in zip(leaves, needs, strict=False) if need]
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=recorded,
            allow_unused=True,
        )
    gradients = iter(found)
    return tuple(next(gradients) if need else None for need in needs)


class _Unpacked:
    """The context of a backward with its saved tensors at hand."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


NO_RULE = "{op}: the fused op has no second derivative; use backend='eager' for it"


def _no_derivative(op: str) -> Formula:
    """Of a backward, or of an op whose results are integers."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(NO_RULE.format(op=op.removesuffix("_backward")))

    return lambda _: (lambda ctx, inputs, output: None, backward)


def _why_no_kernel(op: str, backend: str) -> str:
    if extension is None:
        return extension_missing
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"stmeta::{op}", backend.upper()):
        return ""
    if backend == "cuda" and not extension.build_info()["cuda"]:
        return "stmeta._C was built without CUDA; rebuild with nvcc and a CUDA build of torch"
    return f"stmeta._C has no {backend} kernel of {op}"


def _why_no_triton(launcher: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton` (Linux only)"
    if importlib.util.find_spec(launcher) is None:
        return f"there is no Triton kernel {launcher.rpartition('.')[2]}"
    return ""
