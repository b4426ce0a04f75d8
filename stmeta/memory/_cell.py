"""What a memory is to the models and tasks that use one, and what its config builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Cell(Protocol):
    """A recurrent layer with an explicit state: `y, state = cell(x, state, lengths=lengths)`.

    Implementations are `torch.nn.Module`s: `MANNCell`, `NTMCell`, `DNCCell`, `LSTMCell`. One that
    takes `key` and `add`, [B, T, R, M] each, which go past its controller to the memory, says so by
    an attribute `slots = (R, M)`.
    """

    in_dim: int
    """Width of the input."""
    out_dim: int
    """Width of the output."""
    rows: int
    """Rows N of the memory; 0 = there is none to look at."""

    def __call__(
        self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = `initial_state`.
            lengths: int64 [B], steps of each sequence; None = T.

        Returns:
            [B, T, out_dim], zeros behind a sequence's end; and the state behind its last step.
        """
        ...

    def initial_state(self, batch: int) -> Any:
        """State before the first step: a NamedTuple of tensors [B, ...]."""
        ...

    def read_weights(self, state: Any) -> Tensor:
        """Where the step that led to `state` read, [B, R, N]; [B, 0, 0] without a memory."""
        ...

    def write_weights(self, state: Any, before: Any) -> Tensor:
        """Where the step from `before` to `state` wrote, [B, W, N]; [B, 0, 0] without a memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class CellConfig(ABC):
    """Sizes and choices of a memory. It builds what it configures."""

    @abstractmethod
    def build(self, in_dim: int) -> Any:
        """Make the memory, a `Cell` and a `torch.nn.Module`.

        Args:
            in_dim: width of its input.
        """
        raise NotImplementedError
