"""Where a memory looks: its read and write weights over a sequence, for pictures and debugging."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stmeta.memory._cell import Cell
from stmeta.memory.mann import select


class WeightTrace(NamedTuple):
    """Read and write weights of every step, summed over heads."""

    read: Tensor
    """[B, T, N]"""
    write: Tensor
    """[B, T, N]"""


@torch.no_grad()
def trace_weights(model: nn.Module, *inputs: Tensor) -> WeightTrace:
    """Run a model and tell where its memory reads and writes at each step.

    The memory is called a second time, step by step, with what the model gave it.

    Args:
        model: holds one memory with rows, called once in its forward.
        *inputs: of the model.

    Raises:
        ValueError: the model holds no such memory, or calls it not exactly once.
    """
    cells = [part for part in model.modules() if isinstance(part, Cell) and part.rows]
    if len(cells) != 1:
        raise ValueError(
            f"trace_weights: the model must hold one memory with rows, got {len(cells)}"
        )
    cell, calls = cells[0], []
    assert isinstance(cell, nn.Module)
    hook = cell.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        model(*inputs)
    finally:
        hook.remove()
    if len(calls) != 1:
        raise ValueError(
            f"trace_weights: the model must call its memory once, got {len(calls)} calls"
        )
    return _steps(cell, *calls[0])


def _steps(cell: Cell, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WeightTrace:
    x, state = args[0], args[1] if len(args) > 1 else kwargs.pop("state", None)
    state = state or cell.initial_state(len(x))
    reads, writes = [], []
    lengths = kwargs.pop("lengths", None)
    for t in range(x.shape[1]):
        now = {name: v if v is None else v[:, t : t + 1] for name, v in kwargs.items()}
        if lengths is not None:
            now["lengths"] = (lengths - t).clamp(0, 1)
        before: Any = state
        _, state = cell(x[:, t : t + 1], state, **now)
        read = cell.read_weights(state).sum(1)
        write = cell.write_weights(state, before).sum(1)
        if lengths is not None:  # a sequence that has ended looks nowhere
            read, write = select(t < lengths, (read, write), (0, 0))
        reads.append(read)
        writes.append(write)
    if not reads:
        none = x.new_zeros(len(x), 0, cell.rows)
        return WeightTrace(none, none)
    return WeightTrace(torch.stack(reads, 1), torch.stack(writes, 1))
