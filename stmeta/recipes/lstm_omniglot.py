"""The baseline of `mann_omniglot`: the same episodes and encoder, no memory but the LSTM's own.

    python -m stmeta.train --recipe lstm_omniglot --fused --data FOLDER

Measured on one CPU core beside another job, fp32, 100,000 episodes in 10 minutes, accuracy on 423
new characters at the 1st / 2nd / 3rd / 4th / 5th / 10th image of a class (Santoro et al. 2016):

    35.1 / 92.5 / 95.5 / 96.3 / 97.0 / 97.3   (24.4 / 49.5 / 55.3 / 61.0 / 63.6 / 62.5)

That is 92.5 / 96.9 / 97.5 after 1, 5 and 8 images of a class, where Babu et al. 2021 list 85.3 /
94.4 / 95.8 (table 1), and 93.9 / 97.9 / 98.2 with a pre-trained encoder (table 2).
"""

from __future__ import annotations

from stmeta.memory.lstm import LSTMConfig
from stmeta.models.few_shot import FewShotClassifierConfig
from stmeta.models.image_encoder import ImageEncoderConfig
from stmeta.train.config import RunConfig
from stmeta.train.optim import AdamWConfig
from stmeta.train.tasks.episodes import OmniglotConfig


def recipe() -> RunConfig:
    """As `mann_omniglot`, with an LSTM of 200 in the place of LSTM and memory.

    An LSTM gives an encoder hardly any gradient until it can bind labels to images: with the loss
    of the labels alone, it is at 32 % after as many episodes. So the features have a loss of their
    own (`matching`, Vinyals et al. 2016), and each label comes with the features of its image.
    """
    model = FewShotClassifierConfig.plain(
        LSTMConfig(hidden=200),
        encoder=ImageEncoderConfig(filters=(32, 64, 64), widths=(64,)),
        standardise=True,
        inputs=("features", "label", "last_features"),
    )
    task = OmniglotConfig(
        model=model,
        matching=1.0,
        optim=AdamWConfig(
            lr=2e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        ),
    )
    return RunConfig(recipe="lstm_omniglot", tasks={"episodes": task})
