"""An NTM learns to copy sequences of bits, and copies longer ones than it ever saw.

    python -m stmeta.train --recipe ntm_copy --fused

Measured on one CPU core, fp32, 3 minutes: 0 wrong bits in 64 sequences each of length 10, 20, 40
and 60, after training on lengths 1 to 20. With an LSTM as controller and learned first weights the
same 6,000 steps end at 52 wrong bits at length 20: the LSTM remembers the ends of the sequence by
itself, and its memory stays unused.
"""

from __future__ import annotations

from stmeta.memory.ntm import NTMConfig
from stmeta.train.config import RunConfig
from stmeta.train.tasks.sequences import CopyConfig


def recipe() -> RunConfig:
    """Graves et al. 2014, section 4.1: 8 bits, lengths 1 to 20, feed-forward controller."""
    memory = NTMConfig(
        controller="feedforward", hidden=100, rows=128, width=20, start_weights="first_row"
    )
    return RunConfig(recipe="ntm_copy", tasks={"sequences": CopyConfig(memory=memory, steps=6000)})
