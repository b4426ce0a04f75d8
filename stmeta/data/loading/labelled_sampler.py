"""Labelled and unlabelled samples in one epoch, always in the same ratio."""

from __future__ import annotations

import numpy as np

from stmeta._util.hashing import hash64, shuffled


class LabelledSampler:
    """Says which sample comes at a turn of an epoch, so that so many of each batch have a label.

    Turns count over all ranks. Of any `of` turns that begin at a multiple of `of`, exactly
    `labelled` show a sample with a label, evenly spread. Samples with and without a label go
    through a permutation each; an epoch ends with the part that lasts longer, and the other goes
    round again, every time in a new order.
    """

    def __init__(self, labels: np.ndarray, *, labelled: int, of: int) -> None:
        """Mix n samples.

        Args:
            labels: int [n], -1 = unlabelled.
            labelled: turns of `of` that show a labelled sample, 0 ... of.
            of: turns of a batch on one rank.

        Raises:
            ValueError: a part that is asked for has no samples.
        """
        self.labelled, self.of = labelled, of
        known = labels >= 0
        wanted = {"without a label": of - labelled, "with a label": labelled}
        self.parts = (positions(~known), positions(known))
        for (kind, turns), part in zip(wanted.items(), self.parts, strict=True):
            if turns and not len(part):
                raise ValueError(
                    f"ClipSampler: labelled_share = {labelled / of:g} needs samples {kind}, got "
                    f"{len(labels)} samples of which none is; use labelled_share=None, or add some"
                )

    def batches(self, ranks: int) -> int:
        """Whole batches on every rank in which the longer part is dealt out once; 0 if none."""
        takes = ((self.of - self.labelled) * ranks, self.labelled * ranks)
        pairs = zip(self.parts, takes, strict=True)
        return max(len(part) // take for part, take in pairs if take)

    def sample(self, turn: int, seed: int) -> tuple[int, int]:
        """Sample at a turn of an epoch, and how often its part went round before; `seed` of it."""
        before = turn * self.labelled // self.of
        labelled = (turn + 1) * self.labelled // self.of > before
        part = self.parts[labelled]
        lap, place = divmod(before if labelled else turn - before, len(part))
        return int(part[shuffled(place, len(part), hash64(seed, 5, labelled, lap))]), lap


def positions(mask: np.ndarray) -> np.ndarray:
    """Where a mask holds; int32 where that is enough."""
    return np.flatnonzero(mask).astype(np.int32 if len(mask) < 2**31 else np.int64)
