"""Blocks of projects that are no packages: known by what their methods say, wherever they lie.

Such a class is copied from project to project. So its fused class cannot be written down; it is
made from a subclass of `Structural`, which holds the fused methods, and the class that was met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from stmeta.swap import conv
from stmeta.swap._common import Fused, digest, disturbed, known, original


class Structural(Fused):
    """Fused methods for any class whose methods are, to the letter, ones that we have read."""

    project: ClassVar[str]
    """Where the class was first defined."""
    digests: ClassVar[dict[str, tuple[str, ...]]]
    """Method that is replaced or relied upon -> digests of the texts that we have read."""

    if TYPE_CHECKING:  # attributes that the second base sets

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def resembles(cls, module: nn.Module) -> bool:
        """Whether a module looks like the one that the methods are for, fit or not."""
        raise NotImplementedError

    @classmethod
    def unread(cls, module: nn.Module) -> str:
        """Which method is not as we have read it, as a reason; "" if all are."""
        for name in cls.digests:
            if name in module.__dict__:
                return f"a {name} of its own was put on the instance"
        name = _unread(type(module), tuple(cls.digests.items()))
        return f"its {name} is defined in another way than those of {cls.project}" if name else ""

    @classmethod
    def unlike(cls, patches: Any, digests: tuple[str, ...]) -> str:
        """Why a `patch_embed` is not the project's around a Conv3d of pixels; "" if it is."""
        if not known(type(patches).forward, digests=digests) or "forward" in patches.__dict__:
            return f"its {type(patches).__name__} is defined in another way than {cls.project}'s"
        return conv.why_not_inside("patch_embed.proj", patches.proj, 3) or disturbed(patches)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__bases__[0], original(type(self))), self.__getstate__()


@torch.compiler.assume_constant_result
def _unread(kind: type, digests: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    """The first method whose text is not among those that we have read; "" if there is none.

    What `fuse` put in front of a class is passed over.
    """
    plain = [vars(c) for c in kind.__mro__ if not issubclass(c, Fused)]
    for name, texts in digests:
        if digest(next(methods[name] for methods in plain if name in methods)) not in texts:
            return name
    return ""


@functools.cache
def fused_class(methods: type[Structural], base: type[nn.Module]) -> type[Structural]:
    """The fused class of a class: one for each pair."""
    return type(f"Fused{base.__name__}", (methods, base), {"__doc__": methods.__doc__})


def _blank(methods: type[Structural], base: type[nn.Module]) -> Structural:
    """An instance without content, for copies and pickles, which fill it."""
    cls = fused_class(methods, base)
    return cls.__new__(cls)


def parameters_of(function: Callable[..., Any] | None) -> list[str]:
    """Names of a method's parameters; none if there is no method."""
    code = getattr(function, "__code__", None)
    return [] if code is None else list(code.co_varnames[: code.co_argcount])
