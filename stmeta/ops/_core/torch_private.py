"""Private torch APIs that ops call, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

_functorch: Any = torch._C._functorch  # pyright: ignore


def transform() -> str:
    """The transform of torch that runs now, for a message; "" in ordinary use.

    Under one, a tensor may carry a tangent or an axis that a kernel would not see: forward-mode
    derivatives would be zero, without a word. It takes 0.1 microseconds.
    """
    if _functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return ""


# torch.compile asks while it traces, as it enters transforms itself, and guards on them. Its own
# rule for `peek_interpreter_stack` gives an object that is not None.
transform._dynamo_marked_constant = True  # pyright: ignore


def is_batched(tensor: Any) -> bool:
    """Whether it has the axis that `torch.autograd.grad(is_grads_batched=True)` hides."""
    return isinstance(tensor, torch.Tensor) and _functorch.is_legacy_batchedtensor(tensor)


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor within those of transforms, for a look at its values."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def constant_when_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have torch.compile call a function while it traces, and take the result for a constant.

    As `torch.compiler.assume_constant_result`, which imports the compiler, and Triton with it.
    """
    function._dynamo_marked_constant = True  # pyright: ignore
    return function


def has_dispatch_modes() -> bool:
    """Whether a `TorchDispatchMode` is on; 0.05 microseconds."""
    return torch._C._len_torch_dispatch_stack() > 0


def dispatch_modes() -> list[Any]:
    """Those that are on, innermost last."""
    return _python_dispatch._get_current_dispatch_mode_stack()
