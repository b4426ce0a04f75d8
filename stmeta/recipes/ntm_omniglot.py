"""An NTM on the episodes of `mann_omniglot`.

    python -m stmeta.train --recipe ntm_omniglot --fused --data FOLDER

Measured on one CPU core beside other jobs, fp32, 60,000 episodes in 12 minutes: it had not begun to
match images. Accuracy at the 1st / 2nd / 5th / 10th image of a class: 44.8 / 31.7 / 27.3 / 30.6 %,
no better than guessing among the labels that are left. An NTM has to learn by shifts where to
write, which `mann_omniglot` gets from its usage; what it takes to start is open.
"""

from __future__ import annotations

from stmeta.config import MemoryConfig, OptimConfig
from stmeta.memory.ntm import NTMConfig


def recipe() -> MemoryConfig:
    """As `mann_omniglot`, with the memory of Graves et al. 2014 behind the same encoder."""
    return MemoryConfig(
        recipe="ntm_omniglot",
        task="omniglot",
        memory="ntm",
        filters=(32, 64, 64),
        encoder=(64,),
        matching=1.0,
        ntm=NTMConfig(hidden=200, rows=128, width=40, read_heads=4, write_heads=1),
        optim=OptimConfig(
            lr=2e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
