"""Where a memory looks: its read and write weights over a sequence, for pictures and debugging."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stmeta.memory.dnc import DNCCell
from stmeta.memory.mann import MANNCell, select
from stmeta.memory.ntm import NTMCell


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
        model: holds one `MANNCell`, `NTMCell` or `DNCCell`, called once in its forward.
        *inputs: of the model.

    Raises:
        ValueError: the model holds no such memory, or calls it not exactly once.
    """
    cells = [part for part in model.modules() if isinstance(part, MANNCell | NTMCell | DNCCell)]
    if len(cells) != 1:
        raise ValueError(
            f"trace_weights: the model must hold one MANNCell, NTMCell or DNCCell, got {len(cells)}"
        )
    cell, calls = cells[0], []
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


def _steps(
    cell: MANNCell | NTMCell | DNCCell, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> WeightTrace:
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
        if isinstance(cell, MANNCell):
            read = state.read_weights.sum(1)
            # usage = decay * usage + read weights + write weights
            write = state.usage - cell.config.decay * before.usage - read
        elif isinstance(cell, NTMCell):
            reading = cell.config.read_heads
            read, write = state.weights[:, :reading].sum(1), state.weights[:, reading:].sum(1)
        else:
            read, write = state.read_weights.sum(1), state.write_weights.sum(1)
        if lengths is not None:  # a sequence that has ended looks nowhere
            read, write = select(t < lengths, (read, write), (0, 0))
        reads.append(read)
        writes.append(write)
    if not reads:
        none = x.new_zeros(len(x), 0, cell.config.rows)
        return WeightTrace(none, none)
    return WeightTrace(torch.stack(reads, 1), torch.stack(writes, 1))
