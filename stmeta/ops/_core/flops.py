"""Floating point operations of the fused ops, for `torch.utils.flop_counter.FlopCounterMode`.

As torch does, only matrix products count, two operations for each multiplication, and all that
eager would multiply for a gradient of every input; so a count does not depend on the backend. Each
op gives its formula to `register`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from stmeta.ops._core.schema import arguments_of
from stmeta.ops._core.torch_private import dispatch_modes

Shape = tuple[int, ...]
# Of the arguments by name, tensors as their shapes, and of the shapes of the results.
Formula = Callable[[Any, Any], int]

FORMULAS: dict[str, Callable[..., int]] = {}  # op -> as torch calls it


def count(op: str, schema: str, formula: Formula) -> None:
    """Register the formula of an op."""
    named = arguments_of(schema)
    FORMULAS[op] = lambda *shapes, out_shape, **_: formula(named(*shapes), out_shape)


def of_heads(memory: Shape, other: Shape) -> int:
    """One product of a memory [B, N, M] with the [B, H, ...] of its heads."""
    return 2 * prod(memory) * other[1]


def of_controller(x: Any, gates: Shape) -> int:
    """Products of a scan's controller with its weights, over all steps."""
    return 2 * gates[0] * gates[1] * (prod(x.recurrent) + prod(x.interface))


def tell_counters() -> None:
    """Give the formulas to torch's registry, and to counters that have copied it already.

    Called where a dispatch mode is on: to import the counter with the ops would import Triton.
    """
    counting: Any = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    counters = [mode.counter for mode in dispatch_modes() if hasattr(mode, "counter")]
    for namespace in (torch.ops.stmeta, torch.ops.stmeta_triton):
        for name, formula in FORMULAS.items():
            op = getattr(namespace, name, None)
            if op is None:  # there is no lean op of Triton
                continue
            if op not in counting.flop_registry:
                counting.register_flop_formula(op)(formula)
            for counter in counters:
                counter.flop_registry.setdefault(op, counting.flop_registry[op])
