"""The baseline of `mann_omniglot`: the same episodes and encoder, no memory but the LSTM's own.

    python -m stmeta.train --recipe lstm_omniglot --fused --data FOLDER

Measured on one CPU core beside other jobs, fp32, 100,000 episodes in 21 minutes, accuracy on 423
new characters at the 1st / 2nd / 3rd / 4th / 5th / 10th image of a class (Santoro et al. 2016):

    44.9 / 31.5 / 29.1 / 28.1 / 27.7 / 32.1   (24.4 / 49.5 / 55.3 / 61.0 / 63.6 / 62.5)

After as many episodes as `mann_omniglot` gets, it has only begun to bind labels to images: the loss
is at 1.47 and still falls.
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
