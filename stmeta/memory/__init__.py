"""Memories for learning within an episode. Their state is explicit: `y, state = cell(x, state)`."""

from stmeta.memory.dnc import DNCCell, DNCConfig, DNCState
from stmeta.memory.lstm import LSTMCell, LSTMState
from stmeta.memory.mann import MANNCell, MANNConfig, MANNState
from stmeta.memory.ntm import NTMCell, NTMConfig, NTMState
from stmeta.memory.trace import WeightTrace, trace_weights

__all__ = [
    "DNCCell",
    "DNCConfig",
    "DNCState",
    "LSTMCell",
    "LSTMState",
    "MANNCell",
    "MANNConfig",
    "MANNState",
    "NTMCell",
    "NTMConfig",
    "NTMState",
    "WeightTrace",
    "trace_weights",
]
