"""Calls that nobody should make: `python -m tests.ops._harness.hostile ..`, a process of its own.

    sizes                 every registered op, with sizes 0, 1 and huge on each axis
    random FIRST COUNT    public ops with random bad arguments; seeds FIRST, FIRST + 1, ...

A line on stdout says what is called before it is, so that a process that dies names it, and one
behind it says how it went: "ok", the type of the error, or "differs" from what eager does.
"""

from __future__ import annotations

import math
import os
import random
import resource
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.ops._harness.calls import (
    Call,
    differentiate,
    registered_calls,
    valid_calls,
    with_gradients,
)

HUGE = (2**33, 2**40)  # no tensor of so many numbers exists, but one that repeats its only number
SIZES = (0, 1, 2, 3, *HUGE)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32)
DTYPES += (torch.int64, torch.bool)
VALUES = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-40, 1e-30, 3e38, 1e4, -1e4)
OPTIONS = (0, 1, -1, 2**31, 2**62, 0.0, 1e-40, float("nan"), float("inf"), True, None, "none", ())


def resize(x: Tensor, axis: int, size: int) -> Tensor:
    """`x` cut or repeated on one axis, without memory for a huge size."""
    if size <= x.shape[axis] or not x.numel():
        if not x.numel():
            return x.new_zeros([min(size, 8) if i == axis else n for i, n in enumerate(x.shape)])
        return x.narrow(axis, 0, size)
    if size > 1000 and x.numel():
        shape = [size if i == axis else n for i, n in enumerate(x.shape)]
        fits = math.prod(shape) < 2**62
        return x.narrow(axis, 0, 1).expand(shape) if fits else x
    if x.numel() * size > 10**6:  # it was made huge on another axis
        return x
    again = torch.arange(size).clamp(max=x.shape[axis] - 1)  # the last one, again
    return x.index_select(axis, again)


def bad_sizes() -> Iterator[tuple[str, str, tuple]]:
    """(op, what is changed, arguments): one axis of one tensor, or all axes of one size at once."""
    for name, arguments in registered_calls().items():
        tensors = [(i, x) for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        known = {n for _, x in tensors for n in x.shape}
        for size in (0, 1, *HUGE):
            for i, x in tensors:
                for axis in range(x.dim()):
                    changed = [*arguments]
                    changed[i] = resize(x, axis, size)
                    yield name, f"argument {i}, axis {axis} = {size}", tuple(changed)
            for old in known:
                changed = [*arguments]
                for i, x in tensors:
                    for axis in range(x.dim()):
                        if x.shape[axis] == old:
                            changed[i] = resize(changed[i], axis, size)
                yield name, f"every {old} = {size}", tuple(changed)


def call_sizes() -> None:
    """Each of `bad_sizes`: it gives something, or raises."""
    for name, change, arguments in bad_sizes():
        say(f"begin {name}: {change}")
        try:
            getattr(torch.ops.stmeta, name)(*arguments)
            say("ok")
        except (RuntimeError, ValueError, MemoryError) as error:
            say(type(error).__name__)


class Bad:
    """Random changes of a valid call, the same for a seed."""

    def __init__(self, seed: int, calls: dict[str, Call]) -> None:
        self.draw = random.Random(seed)
        self.name = self.draw.choice(sorted(calls))
        self.call = calls[self.name]
        self.arguments = dict(self.call.arguments)
        self.changes: list[str] = []
        self.tame = True  # the numbers are still such that two ways to compute agree
        for _ in range(self.draw.choice((1, 1, 2, 3))):
            self.change()

    def change(self) -> None:
        """One more change, of one argument or of all that share a size."""
        key = self.draw.choice(sorted(self.arguments))
        x = self.arguments[key]
        if not isinstance(x, Tensor):
            of_kind = (True, False) if isinstance(x, bool) else OPTIONS  # eager takes all as a bool
            self.arguments[key] = self.draw.choice(of_kind)
            self.changes.append(f"{key} = {self.arguments[key]!r}")
            self.tame = False
            return
        kinds = [self.cast, self.lay, self.fill, self.size, self.all_sizes, self.drop]
        if _is_huge(x):
            return
        self.draw.choice(kinds)(key, x)

    def cast(self, key: str, x: Tensor) -> None:
        dtype = self.draw.choice(DTYPES)
        everything = self.draw.random() < 0.5
        for name in self.arguments if everything else [key]:
            other = self.arguments[name]
            same = isinstance(other, Tensor) and other.is_floating_point() == x.is_floating_point()
            if same and not _is_huge(other):
                self.arguments[name] = other.to(dtype)
        self.changes.append(f"{'all' if everything else key} in {dtype}")
        self.tame = False

    def lay(self, key: str, x: Tensor) -> None:
        kind = self.draw.choice(("transposed", "stepped", "expanded", "sliced"))
        if kind == "transposed" and x.dim() > 1:
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif kind == "stepped" and x.dim():
            x = x.repeat_interleave(2, dim=-1)[..., ::2]
        elif kind == "expanded" and x.dim():
            x = x[:1].expand_as(x)
        elif kind == "sliced" and x.dim():
            x = torch.cat([x, x], 0)[: len(x)]
        self.arguments[key] = x
        self.changes.append(f"{key} {kind}")

    def fill(self, key: str, x: Tensor) -> None:
        value = self.draw.choice(VALUES)
        if x.is_floating_point() and x.numel():
            x = x.clone(memory_format=torch.contiguous_format)
            whole = self.draw.random() < 0.3
            x.view(-1)[slice(None) if whole else self.draw.randrange(x.numel())] = value
        elif x.numel() and x.dtype != torch.bool:
            x = x.clone(memory_format=torch.contiguous_format)
            x.view(-1)[self.draw.randrange(x.numel())] = self.draw.choice((0, 1, 127))
        self.arguments[key] = x
        self.changes.append(f"{key} with {value}")
        self.tame = False

    def size(self, key: str, x: Tensor) -> None:
        if x.dim():
            axis, size = self.draw.randrange(x.dim()), self.draw.choice(SIZES)
            self.arguments[key] = resize(x, axis, size)
            self.changes.append(f"{key} axis {axis} = {size}")

    def all_sizes(self, key: str, x: Tensor) -> None:
        if not x.dim() or not x.numel():
            return
        old, size = self.draw.choice(x.shape), self.draw.choice(SIZES[:4])
        for name, other in self.arguments.items():
            for axis in range(other.dim() if isinstance(other, Tensor) else 0):
                if other.shape[axis] == old:
                    self.arguments[name] = resize(self.arguments[name], axis, size)
        self.changes.append(f"every {old} = {size}")

    def drop(self, key: str, x: Tensor) -> None:
        kind = self.draw.choice(("none", "one axis less", "one axis more"))
        if kind == "none":
            self.arguments[key] = None
        elif kind == "one axis more":
            self.arguments[key] = x[None]
        elif x.dim() > 1:
            self.arguments[key] = x.flatten(-2)
        self.changes.append(f"{key}: {kind}")

    def run(self, backend: str) -> list[Tensor] | Exception:
        """Outputs and gradients, or the error. random_masking draws from the same seed."""
        torch.manual_seed(0)
        try:
            ready, leaves = with_gradients(self.arguments)
            outputs = self.call.function(**ready, backend=backend)
            shown = [outputs] if isinstance(outputs, Tensor) else [*outputs]
            return [x.detach() for x in shown] + differentiate(outputs, leaves)
        except (Exception, MemoryError) as error:
            return error


def _is_huge(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() > 10**6


def compare(bad: Bad) -> str:
    """How `auto` did beside eager."""
    eager, auto = bad.run("eager"), bad.run("auto")
    if isinstance(eager, Exception):
        return type(eager).__name__
    if isinstance(auto, Exception):
        return f"differs: eager gives a result, auto raises {type(auto).__name__}: {auto}"
    for ours, theirs in zip(auto, eager, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"differs: {ours.dtype} {[*ours.shape]}, eager {theirs.dtype} {[*theirs.shape]}"
        close = torch.allclose(ours.double(), theirs.double(), 1e-3, 1e-4, equal_nan=True)
        if bad.tame and not close:
            return f"differs by {float((ours.double() - theirs.double()).abs().max())}"
    return "ok"


def call_random(first: int, count: int) -> None:
    """`count` calls."""
    calls = valid_calls()
    for seed in range(first, first + count):
        bad = Bad(seed, calls)
        say(f"begin {seed} {bad.name}: {', '.join(bad.changes)}")
        say(compare(bad).replace("\n", " "))


def say(text: str) -> None:
    """A line that is out before the next call."""
    print(text, flush=True)


def main(*arguments: str) -> None:
    """What the module's docstring says."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer's shadow needs all addresses
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    if arguments[0] == "sizes":
        call_sizes()
    else:
        call_random(*(int(x) for x in arguments[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
