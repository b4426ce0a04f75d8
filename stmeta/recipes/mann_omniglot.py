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
from stmeta.models.few_shot import FewShotClassifierConfig
from stmeta.models.image_encoder import ImageEncoderConfig
from stmeta.train.config import RunConfig
from stmeta.train.optim import AdamWConfig
from stmeta.train.tasks.episodes import OmniglotConfig


def recipe() -> RunConfig:
    """Santoro et al. 2016, section 4.2: five classes, episodes of 50 images, 100,000 episodes.

    Other than in the paper, three convolutions and a layer turn an image into 64 features, read
    keys and written rows come directly from them (`stmeta.models.few_shot`), and the memory is read
    after the write: matching then begins within 500 episodes instead of some 35,000. The network of
    the paper is `santoro_omniglot`.
    """
    model = FewShotClassifierConfig(
        memory=MANNConfig(
            hidden=200, rows=128, width=96, num_heads=4, read_first=False, gate_bias=-2.0
        ),
        encoder=ImageEncoderConfig(filters=(32, 64, 64), widths=(64,)),
        augment=False,
    )
    task = OmniglotConfig(
        model=model,
        optim=AdamWConfig(
            lr=3e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
    return RunConfig(recipe="mann_omniglot", tasks={"episodes": task})
