"""Memories for learning within an episode. Their state is explicit: `y, state = cell(x, state)`."""

from stmeta.memory.lstm import LSTMCell, LSTMState
from stmeta.memory.mann import MANNCell, MANNConfig, MANNState

__all__ = ["LSTMCell", "LSTMState", "MANNCell", "MANNConfig", "MANNState"]
