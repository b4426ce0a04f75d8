"""The baseline of `mann_omniglot`: the same episodes and encoder, no memory but the LSTM's own.

    python -m stmeta.train --recipe lstm_omniglot --fused --data FOLDER

Santoro et al. 2016 report 24.4 / 49.5 / 55.3 / 61.0 / 63.6 / 62.5 for their LSTM; not measured here
yet.
"""

from __future__ import annotations

from stmeta.config import MemoryConfig, OptimConfig


def recipe() -> MemoryConfig:
    """As `mann_omniglot`, with an LSTM of 200 in the place of LSTM and memory."""
    return MemoryConfig(
        recipe="lstm_omniglot",
        task="omniglot",
        memory="lstm",
        filters=(32, 64, 64),
        encoder=(64,),
        optim=OptimConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
