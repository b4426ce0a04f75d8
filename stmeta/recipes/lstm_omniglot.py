"""The baseline of `mann_omniglot`: the same episodes, an LSTM without an external memory.

    python -m stmeta.train --recipe lstm_omniglot --fused --data FOLDER

Santoro et al. 2016 report 24.4 / 49.5 / 55.3 / 61.0 / 63.6 / 62.5 for it; not measured here yet.
"""

from __future__ import annotations

from stmeta.config import MemoryConfig


def recipe() -> MemoryConfig:
    """As `mann_omniglot`, with an LSTM of 200 (Santoro et al. 2016, section 4.2)."""
    return MemoryConfig(recipe="lstm_omniglot", task="omniglot", memory="lstm")
