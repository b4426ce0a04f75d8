"""A MANN learns to name handwritten characters that it sees for the first time.

    python -m stmeta.train --recipe mann_omniglot --fused --data FOLDER

Measured on one CPU core, fp32, 100,000 episodes in 7.6 minutes: accuracy on 423 new characters at
the 1st / 2nd / 3rd / 4th / 5th / 10th image of a class (Santoro et al. 2016 in brackets):

    37.1 / 81.3 / 96.5 / 98.1 / 98.5 / 99.0   (36.4 / 82.8 / 91.0 / 92.6 / 94.9 / 98.1)
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
        filters=(32, 64, 64),
        encoder=(64,),
        mann=MANNConfig(hidden=200, rows=128, width=96, reads=4, read_first=False),
        optim=OptimConfig(
            lr=3e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
