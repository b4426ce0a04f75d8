"""Blocks of projects that are no packages: known by what their methods say, wherever they lie.

Such a class is copied from project to project. So its fused class cannot be written down; it is
made from a subclass of `Structural`, which holds the fused methods, and the class that was met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from stmeta.swap import conv
from stmeta.swap._common import Fused, digest, original


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
        for name, known in cls.digests.items():
            if name in module.__dict__:
                return f"a {name} of its own was put on the instance"
            if digest(getattr(type(module), name)) not in known:
                return f"its {name} is defined in another way than those of {cls.project}"
        return ""

    @classmethod
    def unlike(cls, patches: Any, known: tuple[str, ...]) -> str:
        """Why a `patch_embed` is not the project's around a Conv3d; "" if it is."""
        if digest(type(patches).forward) not in known or "forward" in patches.__dict__:
            return f"its {type(patches).__name__} is defined in another way than {cls.project}'s"
        if type(patches.proj) not in (nn.Conv3d, conv.FusedConv3d):
            return f"patch_embed.proj is a {type(patches.proj).__name__}"
        return ""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__bases__[0], original(type(self))), self.__getstate__()


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
