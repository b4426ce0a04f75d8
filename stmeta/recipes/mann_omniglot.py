"""A MANN learns to name handwritten characters that it sees for the first time.

python -m stmeta.train --recipe mann_omniglot --fused --data FOLDER
"""

from __future__ import annotations

from stmeta.config import MemoryConfig


def recipe() -> MemoryConfig:
    """Santoro et al. 2016, section 4.2: five classes, episodes of 50 images, 100,000 episodes."""
    return MemoryConfig(recipe="mann_omniglot", task="omniglot", memory="mann")
