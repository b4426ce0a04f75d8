"""Few-shot episodes: which samples, in which order, under which names (Santoro et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stmeta._util.hashing import hash64


class Episode(NamedTuple):
    """One episode of L steps.

    Attributes:
        samples: int64 [L], positions in the index; no sample comes twice.
        labels: int64 [L], 0 ... ways - 1, the names that the classes have in this episode.
        class_ids: int64 [L], the data set's own labels.
        seed: source of what is random in reading the clips, 64 bits.
    """

    samples: np.ndarray
    labels: np.ndarray
    class_ids: np.ndarray
    seed: int


def instance_numbers(labels: np.ndarray) -> np.ndarray:
    """Count, at each step, how often its label came before in the same episode.

    Args:
        labels: int [..., L].

    Returns:
        int64 [..., L]: 0 where a class comes for the first time (a guess), 1 for the second, ...
    """
    labels = np.asarray(labels)
    same = labels[..., :, None] == labels[..., None, :]
    return np.tril(same, -1).sum(-1).astype(np.int64)


class EpisodeSampler:
    """A pure function of (seed, number) that makes episodes.

    Each episode draws `ways` classes, gives them the names 0 ... ways - 1 in random order, draws
    clips of each, and shuffles the sequence. With `length`, each step draws one of the classes, so
    that their counts differ; otherwise every class has `instances` clips. Only classes with enough
    samples take part. Training and test are disjoint where their `classes` are.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        ways: int = 5,
        instances: int = 10,
        length: int | None = None,
        classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """Plan over the samples of a split.

        Args:
            labels: int [n], the class of each sample; -1 = unlabelled, never drawn.
            ways: classes in an episode.
            instances: clips of each class.
            length: steps of an episode, instead of ways × instances.
            classes: classes to draw from; None = all.
            seed: other seeds give other episodes.

        Raises:
            ValueError: fewer than `ways` classes have enough samples.
        """
        labels = np.asarray(labels)
        if ways < 1 or instances < 1 or (length is not None and length < 1):
            raise ValueError(
                f"EpisodeSampler: ways, instances and length must be at least 1, got {ways}, "
                f"{instances}, {length}"
            )
        self.ways, self.instances, self.seed = ways, instances, seed
        self.length = ways * instances if length is None else length
        self.uneven = length is not None
        # With `length`, one class could be drawn at every step; twice its share is enough, as
        # episodes that need more are drawn again.
        need = instances if length is None else min(length, 2 * -(-length // ways))
        found, counts = np.unique(labels[labels >= 0], return_counts=True)
        allowed = np.isin(found, found if classes is None else np.asarray(classes))
        self.classes = found[allowed & (counts >= need)]
        if len(self.classes) < ways:
            few = found[allowed & (counts < need)].tolist()
            raise ValueError(
                f"EpisodeSampler: {ways} classes with {need} samples each are needed, "
                f"{len(self.classes)} have so many (classes with fewer: {few[:10]}); "
                "lower ways or instances, or add samples"
            )
        self._members = {int(c): np.flatnonzero(labels == c) for c in self.classes}

    def __call__(self, number: int) -> Episode:
        """Make episode `number`."""
        seed = hash64(self.seed, number)
        random = np.random.Generator(np.random.PCG64(seed))
        classes = random.permutation(self.classes)[: self.ways]
        labels = self._sequence(random, classes)
        samples = np.empty(self.length, np.int64)
        for label, name in enumerate(classes):
            places = np.flatnonzero(labels == label)
            samples[places] = random.permutation(self._members[int(name)])[: len(places)]
        return Episode(samples, labels, classes[labels].astype(np.int64), seed)

    def _sequence(self, random: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        if not self.uneven:
            return random.permutation(np.repeat(np.arange(self.ways), self.instances))
        most = np.array([len(self._members[int(c)]) for c in classes])
        while True:
            labels = random.integers(0, self.ways, self.length)
            if (np.bincount(labels, minlength=self.ways) <= most).all():
                return labels
