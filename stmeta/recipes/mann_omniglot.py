"""A MANN learns to name handwritten characters that it sees for the first time.

python -m stmeta.train --recipe mann_omniglot --fused --data FOLDER
"""

from __future__ import annotations

from stmeta.config import MemoryConfig, OptimConfig
from stmeta.memory.mann import MANNConfig


def recipe() -> MemoryConfig:
    """Santoro et al. 2016, section 4.2: five classes, episodes of 50 images, 100,000 episodes.

    Other than in the paper, two layers turn an image into 64 features, and read keys and written
    rows come directly from them (`stmeta.models.mann`): matching then begins within 1,000 episodes
    instead of some 35,000. `--encoder` without a number gives the network of the paper.
    """
    return MemoryConfig(
        recipe="mann_omniglot",
        task="omniglot",
        memory="mann",
        encoder=(256, 64),
        mann=MANNConfig(hidden=200, rows=128, width=96, reads=4),
        optim=OptimConfig(
            lr=3e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
