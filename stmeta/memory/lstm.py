"""The baseline of Santoro et al. 2016: an LSTM without an external memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stmeta.memory._cell import CellConfig
from stmeta.memory.mann import select
from stmeta.ops.scan._common import check_lengths, within


class LSTMState(NamedTuple):
    """State of an LSTM layer."""

    h: Tensor
    """[B, H]"""
    c: Tensor
    """[B, H]"""

    def detach(self) -> LSTMState:
        """The same values, cut from the graph (truncated backpropagation)."""
        return LSTMState(self.h.detach(), self.c.detach())


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(CellConfig):
    """Size of the baseline."""

    hidden: int = 200
    """Width of the state and of the output."""

    def build(self, in_dim: int) -> LSTMCell:
        """Make the layer for inputs of width `in_dim`."""
        return LSTMCell(in_dim, self.hidden)


class LSTMCell(nn.Module):
    """One LSTM layer over a sequence, used like `MANNCell`.

    Args:
        in_dim: width of the input.
        hidden: width H of the state and of the output.
    """

    def __init__(self, in_dim: int, hidden: int = 200) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.rows = in_dim, hidden, 0
        self.lstm = nn.LSTM(in_dim, hidden, batch_first=True)
        # Remember until told otherwise (Jozefowicz et al. 2015).
        nn.init.constant_(self.lstm.get_parameter("bias_ih_l0")[hidden : 2 * hidden], 1.0)

    def initial_state(self, batch: int) -> LSTMState:
        """Zeros, on the device and in the dtype of the weights."""
        zero = next(self.lstm.parameters()).new_zeros(batch, self.out_dim)
        return LSTMState(zero, zero)

    def read_weights(self, state: LSTMState) -> Tensor:
        """Nothing, [B, 0, 0]: there is no memory to read."""
        return state.h.new_zeros(len(state.h), 0, 0)

    def write_weights(self, state: LSTMState, before: LSTMState) -> Tensor:
        """Nothing, [B, 0, 0]."""
        return self.read_weights(state)

    def forward(
        self, x: Tensor, state: LSTMState | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = zeros.
            lengths: int64 [B], steps of each sequence; None = T. torch needs them on the host.

        Returns:
            [B, T, H], zeros behind a sequence's end; and the state behind its last step.

        Raises:
            ValueError: a shape does not fit, or a length is not in 0 ... T.
        """
        if x.ndim != 3 or x.shape[2] != self.in_dim:
            raise ValueError(f"LSTMCell: x must be [B, T, {self.in_dim}], got {list(x.shape)}")
        state = state or self.initial_state(x.shape[0])
        check_lengths("LSTMCell", lengths, x)
        batch, steps = x.shape[:2]
        if not batch or not steps:  # which torch refuses
            return x.new_zeros(batch, steps, self.out_dim), state
        start = (state.h[None], state.c[None])
        if lengths is None:
            y, (h, c) = self.lstm(x, start)
            return y, LSTMState(h[0], c[0])
        # A packed sequence has a step at least: those without one get their state back.
        some = lengths.clamp(min=1).cpu()
        packed = pack_padded_sequence(within(x, lengths), some, True, enforce_sorted=False)
        packed, (h, c) = self.lstm(packed, start)
        y, _ = pad_packed_sequence(packed, True, total_length=steps)
        h, c = select(lengths > 0, (h[0], c[0]), state)
        return within(y, lengths), LSTMState(h, c)
