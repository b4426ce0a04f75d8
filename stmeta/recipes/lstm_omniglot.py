"""The baseline of `mann_omniglot`: the same episodes, an LSTM without an external memory.

python -m stmeta.train --recipe lstm_omniglot --fused --data FOLDER
"""

from __future__ import annotations

from stmeta.config import MemoryConfig


def recipe() -> MemoryConfig:
    """As `mann_omniglot`, with an LSTM of 200 (Santoro et al. 2016, section 4.2)."""
    return MemoryConfig(recipe="lstm_omniglot", task="omniglot", memory="lstm")
