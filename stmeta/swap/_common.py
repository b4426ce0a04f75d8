"""What all fused blocks share."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Fused:
    """First base of a fused block; the second base is the class that it stands in for.

    The forward of a fused block takes what the op covers. For any other call (wrong sizes, say) it
    runs the forward of its second base, which gives that class's own result or error.
    """

    ops: ClassVar[str]
    """What runs in the place of the block."""
    stmeta_backend: str = "auto"
    """Passed to the ops; an instance attribute where it is not "auto"."""

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why this instance of the second base must stay as it is; "" if it need not."""
        raise NotImplementedError

    @classmethod
    def describe(cls, module: Any) -> str:
        """What runs in the place of this instance, for the report."""
        return cls.ops

    def _get_name(self) -> str:
        return f"Fused{original(type(self)).__name__}"


def original(fused: type) -> type:
    """The class that a fused class stands in for.

    Raises:
        ValueError: something was built on the fused class, so it cannot be taken out.
    """
    if not is_own(fused):
        raise ValueError(
            f"unfuse: {fused.__name__} is built on a fused class; undo that first (fully_shard, "
            "parametrize), or unfuse before it"
        )
    return fused.__bases__[1]


def is_own(fused: type) -> bool:
    """Whether `fuse` gave a module this class, and nothing was built on it."""
    first, *others = fused.__bases__
    # The first base is `Fused`, or a set of methods that fits many classes.
    return first is Fused or (len(others) == 1 and first.__bases__[0].__base__ is Fused)


def known(*functions: Callable[..., Any], digests: tuple[str, ...]) -> bool:
    """Whether functions are, to the letter, ones that we have read.

    A block stands for one definition. Another version of its package may define it in another way,
    which no test here has seen: such a block stays as it is.
    """
    return all(digest(function) in digests for function in functions)


def digest(function: Callable[..., Any]) -> str:
    """Short hash of a function's source without decorators, docstring, comments and spaces."""
    try:
        lines = textwrap.dedent(inspect.getsource(inspect.unwrap(function))).splitlines()
    except (OSError, TypeError):  # no source: frozen, or written in C
        return ""
    node = ast.parse("\n".join(lines)).body[0]
    assert isinstance(node, ast.FunctionDef)
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None
        del lines[first.lineno - 1 : first.end_lineno]
    code = [line for line in lines[node.lineno - 1 :] if not line.strip().startswith("#")]
    return hashlib.sha256("".join("".join(code).split()).encode()).hexdigest()[:16]


def disturbed(*modules: nn.Module) -> str:
    """Why the forward of modules inside a block must not be skipped; "" if it may be."""
    for module in modules:
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return f"{type(module).__name__} inside has hooks, which would not be called"
        if "forward" in module.__dict__:
            return f"{type(module).__name__} inside has a forward of its own on the instance"
    return ""


def computes_alike(x: Tensor, weight: Tensor) -> bool:
    """Whether a Linear or convolution of torch takes `x` and `weight` together."""
    kind = weight.device.type
    if not torch.is_autocast_enabled(kind):
        return x.dtype == weight.dtype
    low = torch.get_autocast_dtype(kind)
    return weight.dtype in (torch.float32, low) and x.dtype in (torch.float32, low)
