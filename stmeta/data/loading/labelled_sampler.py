"""Labelled and unlabelled samples in one epoch, always in the same ratio."""

from __future__ import annotations

import numpy as np

from stmeta._util.hashing import hash64, shuffled


class LabelledSampler:
    """Gives the sample at each position of an epoch, with a fixed number of labelled ones a batch.

    Positions count over all ranks. Of any `of` positions that begin at a multiple of `of`, exactly
    `labelled` hold a sample with a label, evenly spread. Samples with and without a label are
    shuffled separately; an epoch ends with the longer part, and the shorter one is repeated, every
    time in a new order.
    """

    def __init__(self, labels: np.ndarray, *, labelled: int, of: int) -> None:
        """Sample from n samples.

        Args:
            labels: int [n], -1 = unlabelled.
            labelled: labelled samples among `of` positions, 0 ... of.
            of: positions of a batch on one rank.

        Raises:
            ValueError: a part that is needed has no samples.
        """
        self.labelled, self.of = labelled, of
        known = labels >= 0
        wanted = {"without a label": of - labelled, "with a label": labelled}
        self.parts = (positions(~known), positions(known))
        for (kind, count), part in zip(wanted.items(), self.parts, strict=True):
            if count and not len(part):
                raise ValueError(
                    f"ClipSampler: labelled_share = {labelled / of:g} needs samples {kind}, got "
                    f"{len(labels)} samples of which none is; use labelled_share=None, or add some"
                )

    def batches(self, ranks: int) -> int:
        """Whole batches on every rank that use the longer part once; 0 if there are none."""
        takes = ((self.of - self.labelled) * ranks, self.labelled * ranks)
        pairs = zip(self.parts, takes, strict=True)
        return max(len(part) // take for part, take in pairs if take)

    def sample(self, position: int, seed: int) -> tuple[int, int]:
        """Sample at a position of an epoch, and how many times its part was used up before.

        Args:
            position: over all ranks.
            seed: of the epoch.
        """
        before = position * self.labelled // self.of
        labelled = (position + 1) * self.labelled // self.of > before
        part = self.parts[labelled]
        cycle, place = divmod(before if labelled else position - before, len(part))
        return int(part[shuffled(place, len(part), hash64(seed, 5, labelled, cycle))]), cycle


def positions(mask: np.ndarray) -> np.ndarray:
    """Where a mask holds; int32 where that is enough."""
    return np.flatnonzero(mask).astype(np.int32 if len(mask) < 2**31 else np.int64)
