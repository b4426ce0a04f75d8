"""Memories for learning within an episode. Their state is explicit: `y, state = cell(x, state)`."""

from stmeta.memory._cell import Cell, CellConfig
from stmeta.memory.dnc import DNCCell, DNCConfig, DNCState
from stmeta.memory.lstm import LSTMCell, LSTMConfig, LSTMState
from stmeta.memory.mann import MANNCell, MANNConfig, MANNState
from stmeta.memory.ntm import NTMCell, NTMConfig, NTMState
from stmeta.memory.trace import WeightTrace, trace_weights

__all__ = [
    "Cell",
    "CellConfig",
    "DNCCell",
    "DNCConfig",
    "DNCState",
    "LSTMCell",
    "LSTMConfig",
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
