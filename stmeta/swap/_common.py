"""What all fused blocks share."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from stmeta.nn.spt import autocast_dtype
from stmeta.ops._core.torch_private import transform


class Fused:
    """First base of a fused block; the second base is the class that it stands in for.

    The forward of a fused block asks `runs_ops` in each call, and then whether the op covers its
    input. If not (something inside was replaced, a transform, wrong sizes, say) it runs the forward
    of its second base, which gives that class's own result or error.

    Attributes:
        ops: what runs in the place of the block.
        stmeta_backend: passed to the ops; an instance attribute where it is not "auto".
    """

    # Without annotations: TorchScript would read them in the place of those of the second base.
    ops = ""
    stmeta_backend = "auto"

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the signature of the forward that it stands in for: transformers and others ask."""
        super().__init_subclass__(**options)
        if cls.__bases__[0] is Fused and "forward" in vars(cls):
            forward: Any = cls.forward  # pyright: ignore
            forward.__signature__ = inspect.signature(cls.__bases__[1].forward)  # pyright: ignore

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why this instance of the second base must stay as it is; "" if it need not.

        It reads nothing of a module inside before it knows its type: users replace modules.
        """
        raise NotImplementedError

    def runs_ops(self, *inputs: Any) -> bool:
        """Whether ops may run in the place of the block now, if they cover `inputs`."""
        return in_plain_use(*inputs) and not self.why_not(self)

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


def in_plain_use(*inputs: Any) -> bool:
    """Whether a block computes with tensors now, and nothing else is done with it.

    `torch.jit.trace` and the exporters to ONNX write down operators of torch alone, a symbolic
    trace of `torch.fx` knows no sizes, kernels have no rules for transforms, and subclasses that
    hold other tensors (DTensor, quantised weights) have none for ops.
    """
    return not (
        torch.jit.is_tracing()  # pyright: ignore
        or (torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export())
        or any(isinstance(x, fx.Proxy) or hasattr(x, "__tensor_flatten__") for x in inputs)
        or transform()
    )


def plain_method(function: Callable[..., Any]) -> Any:
    """A method of a second base, under a name of its own.

    TorchScript compiles it where `torch.jit.is_scripting()`: it knows no `super()`, and names what
    it compiles by the function, so that two of one name collide.
    """
    assert isinstance(function, types.FunctionType)
    name = f"plain_{function.__name__}"
    code, defaults = function.__code__, function.__defaults__
    twin = types.FunctionType(code, function.__globals__, name, defaults, function.__closure__)
    twin.__annotations__, twin.__kwdefaults__ = function.__annotations__, function.__kwdefaults__
    return twin


@torch.compiler.assume_constant_result
def known(*functions: Callable[..., Any], digests: tuple[str, ...]) -> bool:
    """Whether functions are, to the letter, ones that we have read.

    A block stands for one definition. Another version of its package may define it in another way,
    which no test here has seen: such a block stays as it is.
    """
    return all(digest(function) in digests for function in functions)


@functools.cache
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
    if torch_module._has_any_global_hook():
        return "there are hooks for all modules, which would not be called for those inside"
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


def held(weight: Tensor) -> str:
    """Why ops cannot read a weight: it is a subclass that holds other tensors; "" if they can."""
    if hasattr(weight, "__tensor_flatten__"):
        return f"its weight is a {type(weight).__name__}, for which ops have no rules"
    return ""


def computes_alike(x: Tensor, weight: Tensor) -> bool:
    """Whether a Linear or convolution of torch takes `x` and `weight` together."""
    low = autocast_dtype(weight.device.type)
    if low is None:
        return x.dtype == weight.dtype
    return weight.dtype in (torch.float32, low) and x.dtype in (torch.float32, low)
