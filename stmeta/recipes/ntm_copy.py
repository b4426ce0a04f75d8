"""An NTM learns to copy sequences of bits, and copies longer ones than it ever saw.

python -m stmeta.train --recipe ntm_copy --fused
"""

from __future__ import annotations

from stmeta.config import MemoryConfig, OptimConfig
from stmeta.memory.ntm import NTMConfig


def recipe() -> MemoryConfig:
    """Graves et al. 2014, section 4.1: 8 bits, lengths 1 to 20."""
    return MemoryConfig(
        recipe="ntm_copy",
        task="copy",
        memory="ntm",
        ntm=NTMConfig(hidden=100, rows=128, width=20),
        steps=6000,
        optim=OptimConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
