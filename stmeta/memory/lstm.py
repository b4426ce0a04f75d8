"""The baseline of Santoro et al. 2016: an LSTM without an external memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class LSTMState(NamedTuple):
    """State of an LSTM layer."""

    h: Tensor
    """[B, H]"""
    c: Tensor
    """[B, H]"""

    def detach(self) -> LSTMState:
        """The same values, cut from the graph (truncated backpropagation)."""
        return LSTMState(self.h.detach(), self.c.detach())


class LSTMCell(nn.Module):
    """One LSTM layer over a sequence, used like `MANNCell`.

    Args:
        in_dim: width of the input.
        hidden: width H of the state and of the output.
    """

    def __init__(self, in_dim: int, hidden: int = 200) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, hidden
        self.lstm = nn.LSTM(in_dim, hidden, batch_first=True)
        # Remember until told otherwise (Jozefowicz et al. 2015).
        nn.init.constant_(self.lstm.get_parameter("bias_ih_l0")[hidden : 2 * hidden], 1.0)

    def initial_state(self, batch: int) -> LSTMState:
        """Zeros, on the device and in the dtype of the weights."""
        zero = next(self.lstm.parameters()).new_zeros(batch, self.out_dim)
        return LSTMState(zero, zero)

    def forward(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = zeros.

        Returns:
            [B, T, H] and the last state.
        """
        state = state or self.initial_state(x.shape[0])
        y, (h, c) = self.lstm(x, (state.h[None], state.c[None]))
        return y, LSTMState(h[0], c[0])
