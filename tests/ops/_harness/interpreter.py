"""Most of the time that Triton's interpreter takes, saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter does once what it does again, to the same effect, at each operation."""
    from triton.language import core
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", _call_of(interpreter))
    # It looks for overflows of each sum and product, then drops what it found: debug is off.
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    monkeypatch.setattr(interpreter, "_get_np_dtype", _by_name(interpreter._get_np_dtype))
    monkeypatch.setattr(core.block_type, "__init__", _typed(core.block_type.__init__))
    monkeypatch.setattr(core.tensor, "__init__", _shaped(core.tensor.__init__))


def _call_of(interpreter: Any) -> Callable[..., Any]:
    """Calls of device functions prepare `triton.language` once for each module they lie in.

    What a launch prepares itself it takes back behind it; what such a call prepares stays.
    """
    prepared = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module not in prepared:
            prepared.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    return call


def _by_name(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A type's name says which it is: types are equal where their names are."""
    found = {}

    def remembered(kind: Any) -> Any:
        if kind.name not in found:
            found[kind.name] = numpy_type(kind)
        return found[kind.name]

    return remembered


def _typed(make: Callable[..., None]) -> Callable[..., None]:
    """Types of blocks: all but the element's type follows from its name and the shape."""
    found = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape)
        if key not in found:
            make(self, element_ty, shape)
            found[key] = vars(self).copy()
        vars(self).update(found[key], element_ty=element_ty)

    return init


def _shaped(make: Callable[..., None]) -> Callable[..., None]:
    """Tensors: shape and size, which nothing changes, follow from the type's shape."""
    found = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        key = type.shape if type.is_block() else ()
        if key not in found:
            make(self, handle, type)
            found[key] = {"shape": self.shape, "numel": self.numel}
        vars(self).update(found[key], handle=handle, type=type, dtype=type.scalar)

    return init
