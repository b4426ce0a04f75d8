"""Few-shot episodes: which clips, in which order, under which names (Santoro et al. 2016)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stmeta._util.hashing import hash64
from stmeta.data.loading.batch import ClipBatch, EpisodeBatch
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.loading.resume import ResumableLoader


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
        self._even = length is None
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
        if self._even:
            return random.permutation(np.repeat(np.arange(self.ways), self.instances))
        most = np.array([len(self._members[int(c)]) for c in classes])
        while True:
            labels = random.integers(0, self.ways, self.length)
            if (np.bincount(labels, minlength=self.ways) <= most).all():
                return labels


class EpisodeLoader(ResumableLoader):
    """Delivers batches of episodes, from clips or from a table of features.

    Like `ClipLoader`, it yields to the end of the epoch and then stands at the start of the next
    one, whose episodes are new; `state_dict` is exact.
    """

    def __init__(
        self,
        sampler: EpisodeSampler,
        *,
        batch_size: int,
        episodes: int,
        clips: ClipLoader | None = None,
        features: Tensor | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Serve a plan.

        Args:
            sampler: over the labels of `clips.index`, or of the columns of `features`.
            batch_size: episodes in a batch; the last batch of an epoch may be smaller.
            episodes: episodes in an epoch.
            clips: reads the clips, each episode with new starts and crops. The caller closes it.
            features: [views, n, D] of a frozen encoder; each step takes one of the views.
            keys: n names, with `features`.

        Raises:
            ValueError: not exactly one of `clips` and `features` is given, or sizes disagree.
        """
        if (clips is None) == (features is None):
            raise ValueError("EpisodeLoader: give either clips or features, and not both")
        if batch_size < 1 or episodes < 1:
            raise ValueError(
                f"EpisodeLoader: batch_size and episodes must be at least 1, got {batch_size} and "
                f"{episodes}"
            )
        if features is not None and features.ndim != 3:
            raise ValueError(
                f"EpisodeLoader: features must be [views, n, D], got {list(features.shape)}"
            )
        if features is not None and (keys is None or len(keys) != features.shape[1]):
            raise ValueError(
                f"EpisodeLoader: keys must name the {features.shape[1]} columns of features, got "
                f"{None if keys is None else len(keys)}"
            )
        self.sampler, self.batch_size, self.episodes = sampler, batch_size, episodes
        self.clips, self.features, self.keys = clips, features, list(keys or ())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.episodes // self.batch_size)

    def __iter__(self) -> Iterator[EpisodeBatch]:
        """Yield batches from the current position to the end of the epoch."""
        epoch, ahead = self._epoch, deque[tuple[list[Episode], Future[ClipBatch] | None]]()
        position = self._position
        depth = self.clips.config.prefetch if self.clips is not None else 0
        while self._epoch == epoch:
            while position < len(self) and len(ahead) <= depth:
                ahead.append(self._start(epoch, position))
                position += 1
            batch = self._finish(*ahead.popleft())
            self._advance()
            yield batch

    def _start(self, epoch: int, position: int) -> tuple[list[Episode], Future[ClipBatch] | None]:
        first = position * self.batch_size
        numbers = range(first, min(first + self.batch_size, self.episodes))
        episodes = [self.sampler(epoch * self.episodes + number) for number in numbers]
        if self.clips is None:
            return episodes, None
        requests = [
            self.clips.sampler.clip(int(sample), epoch=episode.seed)
            for episode in episodes
            for sample in episode.samples
        ]
        return episodes, self.clips.submit(requests)

    def _finish(self, episodes: list[Episode], clips: Future[ClipBatch] | None) -> EpisodeBatch:
        labels = np.stack([episode.labels for episode in episodes]).astype(np.int64)
        previous = np.concatenate([np.full((len(labels), 1), -1), labels[:, :-1]], axis=1)
        size, length = labels.shape
        video = features = None
        if clips is not None:
            assert self.clips is not None
            self.clips.collator.require_same_process()
            batch = self.clips.deliver(clips.result())
            video = batch.video.unflatten(0, (size, length))
            keys = [batch.key[i * length : (i + 1) * length] for i in range(size)]
        else:
            assert self.features is not None
            samples = np.stack([episode.samples for episode in episodes])
            features = self.features[self._views(episodes, length), torch.from_numpy(samples)]
            keys = [[self.keys[i] for i in row] for row in samples.tolist()]
        return EpisodeBatch(
            video=video,
            features=features,
            label=torch.from_numpy(labels),
            previous_label=torch.from_numpy(previous),
            class_id=torch.from_numpy(np.stack([episode.class_ids for episode in episodes])),
            instance=torch.from_numpy(instance_numbers(labels)),
            key=keys,
        )

    def _views(self, episodes: list[Episode], length: int) -> Tensor:
        """A view of each step, int64 [B, L]."""
        assert self.features is not None
        views = len(self.features)
        if views == 1:
            return torch.zeros(len(episodes), length, dtype=torch.int64)
        return torch.tensor(
            [[hash64(e.seed, step) % views for step in range(length)] for e in episodes]
        )
