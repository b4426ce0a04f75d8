"""Private torch APIs that ops call, in one place, and what ops do where torch lacks one.

A call through `torch.library`'s public autograd takes 60 microseconds more, forward and backward,
than an autograd Function of ours, which is as much as a step of a small memory; the Function needs
private APIs to be as safe. Where one of those is missing, calls take the public way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

# Name within torch -> what happens without it.
PRIVATE = {
    "_C._AutoDispatchBelowAutograd": "calls take the public way",
    "_C._functorch.peek_interpreter_stack": "calls take the public way, also under torch.func",
    "_C._functorch.is_legacy_batchedtensor": "calls take the public way",
    "_C._functorch.is_functorch_wrapped_tensor": "values are not looked at under torch.func",
    "_C._functorch.get_unwrapped": "values are not looked at under torch.func",
    "_C._autograd._get_current_graph_task_keep_graph": "lrua_scan's backward copies two tensors",
    "_C._dispatch_has_kernel_for_dispatch_key": "all ops count as compiled, if the extension is",
    "_C._len_torch_dispatch_stack": "each call looks for counters of operations",
    "autograd.forward_ad._current_level": "calls take the public way; a trial tells the mode",
    "utils._python_dispatch._get_current_dispatch_mode_stack": (
        "counters of operations that are on already do not learn of ops"
    ),
}


def _find(name: str) -> Any:
    try:
        return operator.attrgetter(name)(torch)
    except AttributeError:
        return None


_found = {name: _find(name) for name in PRIVATE}
MISSING = tuple(name for name, api in _found.items() if api is None)
FAST_AUTOGRAD = not any("public way" in PRIVATE[name] for name in MISSING)
"""Whether calls take our autograd Functions."""

_peek = _found["_C._functorch.peek_interpreter_stack"] or (lambda: None)
_is_legacy_batched = _found["_C._functorch.is_legacy_batchedtensor"] or (lambda tensor: False)
_is_wrapped = _found["_C._functorch.is_functorch_wrapped_tensor"]
_unwrap = _found["_C._functorch.get_unwrapped"]
_count_modes = _found["_C._len_torch_dispatch_stack"] or (lambda: 1)
_modes = _found["utils._python_dispatch._get_current_dispatch_mode_stack"] or list
_knows_level = _found["autograd.forward_ad._current_level"] is not None

# The two below are what a Function's forward and backward run under and ask.
below_autograd: Callable[[], Any] = _found["_C._AutoDispatchBelowAutograd"]
"""Context manager: what ops call inside is not recorded, and ends at their kernels."""
keeps_graph: Callable[[], bool] = _found["_C._autograd._get_current_graph_task_keep_graph"] or (
    lambda: True
)
"""Whether the backward that runs leaves its graph for another one."""


def transform() -> str:
    """The transform of torch that runs now, for a message; "" in ordinary use.

    Under one, a tensor may carry a tangent or an axis that a kernel would not see: forward-mode
    derivatives would be zero, without a word. It takes 0.1 microseconds.
    """
    if _peek() is not None:
        return "a transform of torch.func"
    if forward_ad._current_level >= 0 if _knows_level else _in_forward_mode():
        return "forward-mode differentiation"
    return ""


# torch.compile asks while it traces, as it enters transforms itself, and guards on them. Its own
# rule for `peek_interpreter_stack` gives an object that is not None.
transform._dynamo_marked_constant = True  # pyright: ignore


def _in_forward_mode() -> bool:
    """By a trial: torch makes a dual tensor only there."""
    try:
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
    except RuntimeError:
        return False
    return True


def is_batched(tensor: Any) -> bool:
    """Whether it has the axis that `torch.autograd.grad(is_grads_batched=True)` hides."""
    return isinstance(tensor, torch.Tensor) and _is_legacy_batched(tensor)


def unwrapped(tensor: torch.Tensor) -> torch.Tensor | None:
    """The plain tensor within those of transforms, for a look at its values; None: unknown."""
    if _is_wrapped is None or _unwrap is None:
        return None if transform() else tensor
    while _is_wrapped(tensor):
        tensor = _unwrap(tensor)
    return tensor


def constant_when_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have torch.compile call a function while it traces, and take the result for a constant.

    As `torch.compiler.assume_constant_result`, which imports the compiler, and Triton with it.
    """
    function._dynamo_marked_constant = True  # pyright: ignore
    return function


def has_kernel(op: str, device: str) -> bool:
    """Whether the compiled extension registered a kernel of `stmeta::<op>`; device: CPU or CUDA."""
    find = _found["_C._dispatch_has_kernel_for_dispatch_key"]
    return find is None or find(f"stmeta::{op}", device)


def has_dispatch_modes() -> bool:
    """Whether a `TorchDispatchMode` is on; 0.05 microseconds."""
    return _count_modes() > 0


def dispatch_modes() -> list[Any]:
    """Those that are on, innermost last."""
    return _modes()
