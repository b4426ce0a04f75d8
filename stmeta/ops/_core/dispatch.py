"""Picks the implementation of each call, and says why.

torch picks between CPU and CUDA kernels by device. The choice that is ours is between them, Triton
and plain eager. A backend that is named never falls back: it runs, or raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stmeta._errors import BackendUnavailableError
from stmeta.ops._core.device import why_not_on_gpu
from stmeta.ops._core.flops import tell_counters
from stmeta.ops._core.limits import exceeded
from stmeta.ops._core.register import INTERPRET, functions, missing, orders, overloads
from stmeta.ops._core.torch_private import has_dispatch_modes, transform

BACKENDS = ("eager", "cpu", "triton", "cuda")
_NAMESPACE = {"cpu": "stmeta", "cuda": "stmeta", "triton": "stmeta_triton"}
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda", "cpu")[: 1 + INTERPRET]}

# A plain list, because torch.compile guards on it (it cannot read a ContextVar): a changed scope
# recompiles. It is the process's scope, so autograd's and checkpointing's threads see it as well.
_scope = ["auto"]


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one backend for the ops called inside: `with stmeta.backend("eager"): ...`.

    It holds for the whole process, autograd's threads included, and compiled functions obey it.
    An op's own `backend=` argument goes before it.

    Args:
        name: one of `BACKENDS`, or "auto".

    Raises:
        ValueError: there is no such backend.
    """
    _check_name(name)
    previous = _scope[0]
    _scope[0] = name
    try:
        yield
    finally:
        _scope[0] = previous


def resolve(
    op: str,
    tensor: Tensor,
    requested: str = "auto",
    sizes: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Name of the backend that runs `op` on `tensor`.

    Args:
        op: name of the op.
        tensor: one of its arguments, on the device of the call.
        requested: a backend, or "auto".
        sizes: by their letters, as the limits of the op's kernels (`limits.LIMITS`) name them;
            None = those of a call within the limits.
        dtype: that it computes in; None = that of `tensor`.

    Raises:
        ValueError: there is no such backend.
        BackendUnavailableError: the named backend cannot run here.
    """
    _check_name(requested)
    name = _scope[0] if requested == "auto" else requested
    device, dtype, within = tensor.device, dtype or tensor.dtype, transform()
    if name != "auto":
        reason = _why_not(op, name, device, dtype, sizes)
        if within and name != "eager":
            reason = f"it has no rule for {within}; pass backend='eager'"
        if reason:
            raise BackendUnavailableError(f"{op}: backend {name!r} cannot run: {reason}")
        return name
    if within:  # every step of eager has rules for it
        return "eager"
    for candidate in orders[op].get(device.type, ()):
        if not _why_not(op, candidate, device, dtype, sizes):
            return candidate
    return "eager"


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"stmeta: backend must be one of {('auto', *BACKENDS)}, got {name!r}")


def _why_not(
    op: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, int] | None = None,
) -> str:
    if name == "eager" or missing[op][name]:
        return missing[op][name]
    if device.type not in _DEVICES[name]:
        hint = " (TRITON_INTERPRET=1 runs it on the CPU, slowly)" if name == "triton" else ""
        return f"it takes tensors on {_DEVICES[name][0]}, got one on {device.type}{hint}"
    if device.type == "cuda" and (reason := why_not_on_gpu(name, device.index)):
        return reason
    if dtype == torch.float64:
        return "it computes in fp32 and the input is float64; pass backend='eager'"
    reason = "" if sizes is None else exceeded(op, name, sizes)
    return reason and f"{reason}; pass backend='eager'"


def overload(op: str, name: str) -> Any:
    """The registered op that backend `name` runs: `torch.ops.<namespace>.<op>.default`."""
    return overloads[_NAMESPACE[name]][op]


def run(op: str, name: str, *arguments: Any) -> Any:
    """Result of the registered op that backend `name` runs, with a gradient where one is needed."""
    namespace = _NAMESPACE[name]
    function = functions[namespace][op]
    if not torch.compiler.is_compiling():
        if has_dispatch_modes():
            tell_counters()
        if function is not None and torch.is_grad_enabled():
            return function.apply(*arguments)
    return overloads[namespace][op](*arguments)


def registered_ops() -> tuple[str, ...]:
    """Names of the public ops."""
    return tuple(orders)


def availability(op: str) -> dict[str, str]:
    """Backend -> why it can run nothing on this machine; "" where it can."""
    cells = dict(missing[op])
    for name in BACKENDS[1:]:
        if "cpu" in _DEVICES[name]:
            continue
        if not torch.cuda.is_available():
            cells[name] = "needs a CUDA device"
        cells[name] = cells[name] or why_not_on_gpu(name, None)
    return cells


def explain() -> str:
    """What `backend="auto"` runs for each op and device type, and why, one line each."""
    lines = [f"scope: {_scope[0]}"]
    for op, order_of in orders.items():
        for device, order in order_of.items():
            reasons = {name: _why_not(op, name, torch.device(device)) for name in order}
            chosen = next(name for name in order if not reasons[name])
            skipped = "; ".join(f"{name}: {why}" for name, why in reasons.items() if why)
            lines.append(f"{op} on {device}: {chosen}" + (f" ({skipped})" if skipped else ""))
    return "\n".join(lines)
