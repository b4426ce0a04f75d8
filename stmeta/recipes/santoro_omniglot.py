"""The network of Santoro et al. 2016 as it is printed, on its Omniglot episodes.

    python -m stmeta.train --recipe santoro_omniglot --fused --data FOLDER

Measured earlier with eager ops on two CPU cores: it leaves the loss of a guess (ln 5 = 1.609) after
about 35,000 episodes, and stands at 71.3 / 90.3 / 91.8 % at the 2nd / 4th / 5th image of a class
after 96,000. `mann_omniglot` begins within 500 episodes.
"""

from __future__ import annotations

from stmeta.memory.mann import MANNConfig
from stmeta.models.few_shot import FewShotClassifierConfig
from stmeta.train.config import RunConfig
from stmeta.train.tasks.episodes import OmniglotConfig


def recipe() -> RunConfig:
    """Section 4.2: pixels and labels go through the LSTM, five classes, episodes of 50 images."""
    model = FewShotClassifierConfig.plain(MANNConfig())
    return RunConfig(recipe="santoro_omniglot", tasks={"episodes": OmniglotConfig(model=model)})
