"""A MANN learns to name handwritten characters that it sees for the first time.

    python -m stmeta.train --recipe mann_omniglot --fused --data FOLDER

Measured on one CPU core beside other jobs, fp32, 100,000 episodes in 19 minutes (3,200 episodes in
34 seconds; eager ops take 163 for as many): accuracy on 423 new characters at the 1st / 2nd / 3rd /
4th / 5th / 10th image of a class (Santoro et al. 2016 in brackets):

    41.8 / 96.9 / 98.8 / 99.3 / 99.4 / 99.6   (36.4 / 82.8 / 91.0 / 92.6 / 94.9 / 98.1)

That is 96.9 / 99.4 / 99.5 after 1, 5 and 8 images of a class, where Babu et al. 2021 (table 1) list
85.3 / 94.4 / 95.8 for an LSTM, 88.7 / 96.8 / 97.3 for an NTM and 96.8 / 99.4 / 99.7 for their own
(ours: `lstm_omniglot`, `ntm_omniglot`).
"""

from __future__ import annotations

from stmeta.memory.mann import MANNConfig
from stmeta.train.config import MemoryConfig, OptimConfig


def recipe() -> MemoryConfig:
    """Santoro et al. 2016, section 4.2: five classes, episodes of 50 images, 100,000 episodes.

    Other than in the paper, three convolutions and a layer turn an image into 64 features, read
    keys and written rows come directly from them (`stmeta.models.mann`), and the memory is read
    after the write: matching then begins within 500 episodes instead of some 35,000. `--filters`
    and `--encoder` without a number give the network of the paper.
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
