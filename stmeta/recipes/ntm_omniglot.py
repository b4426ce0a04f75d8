"""An NTM on the episodes of `mann_omniglot`.

python -m stmeta.train --recipe ntm_omniglot --fused --data FOLDER
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
        ntm=NTMConfig(hidden=200, rows=128, width=40, read_heads=4, write_heads=1),
        optim=OptimConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
