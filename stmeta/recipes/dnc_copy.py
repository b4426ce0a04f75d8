"""A DNC learns to copy sequences of bits.

    python -m stmeta.train --recipe dnc_copy --fused

Measured on one CPU core, fp32, beside other jobs, 12 minutes: 0 wrong bits in 64 sequences each of
length 10 and 20 after training on lengths 1 to 20; best on longer ones after 3,500 steps (0.02 at
length 40), then worse (12 at length 40, 205 at 60): it learns to go from row to row in the order of
its 64 rows, not that rows come to an end.
"""

from __future__ import annotations

from stmeta.memory.dnc import DNCConfig
from stmeta.train.config import RunConfig
from stmeta.train.tasks.sequences import CopyConfig


def recipe() -> RunConfig:
    """Graves et al. 2016, with the copy task of Graves et al. 2014: 8 bits, lengths 1 to 20."""
    memory = DNCConfig(hidden=100, rows=64, width=20, read_heads=1)
    task = CopyConfig(memory=memory, steps=6000, test_lengths=(10, 20, 40))
    return RunConfig(recipe="dnc_copy", tasks={"sequences": task})
