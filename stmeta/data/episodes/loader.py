"""Batches of few-shot episodes, whatever a step shows: clips, features or images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from stmeta._util.hashing import uniforms
from stmeta.data.episodes.sampler import Episode, EpisodeSampler, instance_numbers
from stmeta.data.loading.batch import TensorFields
from stmeta.data.loading.resume import ResumableLoader

LabelProtocol = Literal["offset", "delayed", "support_query"]
Read = tuple[Tensor, list[list[str]]]


@dataclass(frozen=True)
class EpisodeBatch(TensorFields):
    """A batch of few-shot episodes: B sequences of L steps."""

    x: Tensor
    """[B, L, ...], what the steps show: see the source of the loader."""
    given_label: Tensor
    """float32 [B, L, ways], one-hot: the label that a model is told at this step; zeros = none."""
    label: Tensor
    """int64 [B, L], 0 ... ways - 1; every episode numbers its classes anew."""
    target_mask: Tensor
    """bool [B, L]: the steps that are scored."""
    instance: Tensor
    """int64 [B, L], how often this class has come in the episode before this step."""
    class_id: Tensor
    """int64 [B, L], the data set's own label."""
    key: list[list[str]]
    """Names of the samples, per episode."""

    def __len__(self) -> int:
        return len(self.key)


class Source(Protocol):
    """What the steps of episodes show, by position of a sample in the labels of the sampler."""

    ahead: int
    """Batches that are read before they are asked for."""

    def start(self, samples: np.ndarray, seeds: np.ndarray) -> Callable[[], Read]:
        """Begin to read, and return what waits for it.

        Args:
            samples: int64 [B, L].
            seeds: uint64 [B], one of each episode, for what is random in reading.

        Returns:
            A function that returns [B, L, ...] and the names of the samples.
        """
        ...


class EpisodeLoader(ResumableLoader):
    """Delivers batches of episodes.

    Protocols, by what is told beside sample t and what is scored:

    - `offset`: the label of sample t - 1; every step (Santoro et al. 2016, figure 1a).
    - `delayed`: the label of sample t - delay; every step.
    - `support_query`: first `shots` samples of each class, each with its own label, then `queries`
      samples of each class without; the latter. Both parts are shuffled.

    Like `ClipLoader`, it yields to the end of the epoch and then stands at the start of the next
    one, whose episodes are new; `state_dict` is exact.
    """

    def __init__(
        self,
        sampler: EpisodeSampler,
        source: Source,
        *,
        episodes: int,
        batch_size: int = 16,
        protocol: LabelProtocol = "offset",
        delay: int | None = None,
        shots: int | None = None,
        queries: int | None = None,
    ) -> None:
        """Serve episodes.

        Args:
            sampler: over the samples of `source`.
            source: what the steps show, such as `ClipSource`, `FeatureSource`, `ImageSource`.
            episodes: episodes in an epoch.
            batch_size: episodes in a batch; the last batch of an epoch may be smaller.
            protocol: see above.
            delay: with `delayed`, at least 1; 1 is the same as `offset`.
            shots: with `support_query`, samples of each class with a label.
            queries: with `support_query`, samples of each class without.

        Raises:
            ValueError: arguments disagree.
        """
        if batch_size < 1 or episodes < 1:
            raise ValueError(
                f"EpisodeLoader: batch_size and episodes must be at least 1, got {batch_size} and "
                f"{episodes}"
            )
        self.delay = _check_protocol(sampler, protocol, delay, shots, queries)
        self.sampler, self.source, self.protocol, self.shots = sampler, source, protocol, shots
        self.batch_size, self.episodes = batch_size, episodes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.episodes // self.batch_size)

    def __iter__(self) -> Iterator[EpisodeBatch]:
        """Yield batches from the current position to the end of the epoch."""
        epoch, position = self._epoch, self._position
        ahead: deque[Callable[[], EpisodeBatch]] = deque()
        while self._epoch == epoch:
            while position < len(self) and len(ahead) <= self.source.ahead:
                first = position * self.batch_size
                last = min(first + self.batch_size, self.episodes)
                ahead.append(self._start(range(first, last), epoch * self.episodes))
                position += 1
            batch = ahead.popleft()()
            self._advance()
            yield batch

    def batch(self, numbers: Sequence[int]) -> EpisodeBatch:
        """Make the episodes of these numbers, a pure function of them, sampler and source."""
        return self._start(numbers, 0)()

    def _start(self, numbers: Sequence[int], first: int) -> Callable[[], EpisodeBatch]:
        episodes = [self.sampler(first + number) for number in numbers]
        seeds = np.array([episode.seed for episode in episodes], np.uint64)
        samples, labels, class_ids = self._sequences(episodes, seeds)
        finish = self.source.start(samples, seeds)

        def batch() -> EpisodeBatch:
            x, key = finish()
            given, scored = self._told(labels)
            return EpisodeBatch(
                x=x,
                given_label=torch.from_numpy(given),
                label=torch.from_numpy(labels),
                target_mask=torch.from_numpy(scored),
                instance=torch.from_numpy(instance_numbers(labels)),
                class_id=torch.from_numpy(class_ids),
                key=key,
            )

        return batch

    def _told(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels that are told, float32 [B, L, ways], and steps that are scored, bool [B, L]."""
        one_hot = np.eye(self.sampler.ways, dtype=np.float32)[labels]
        given = np.zeros_like(one_hot)
        if self.shots is None:
            given[:, self.delay :] = one_hot[:, : -self.delay]
            return given, np.ones(labels.shape, bool)
        scored = instance_numbers(labels) >= self.shots
        given[~scored] = one_hot[~scored]
        return given, scored

    def _sequences(self, episodes: list[Episode], seeds: np.ndarray) -> tuple[np.ndarray, ...]:
        """Samples, labels and class ids, int64 [B, L]; support before queries."""
        found = (
            np.stack([episode.samples for episode in episodes]),
            np.stack([episode.labels for episode in episodes]).astype(np.int64),
            np.stack([episode.class_ids for episode in episodes]),
        )
        if self.shots is None:
            return found
        # The order of the sampler would not do: sorted by part, not all orders are equally likely.
        random = uniforms(seeds, found[1].shape[1], 1)[..., 0]
        order = np.argsort(random + (instance_numbers(found[1]) >= self.shots), axis=1)
        samples, labels, class_ids = (np.take_along_axis(field, order, 1) for field in found)
        return samples, labels, class_ids


def _check_protocol(
    sampler: EpisodeSampler,
    protocol: str,
    delay: int | None,
    shots: int | None,
    queries: int | None,
) -> int:
    """Steps from a sample to its label."""
    if protocol not in get_args(LabelProtocol):
        allowed = ", ".join(get_args(LabelProtocol))
        raise ValueError(f"EpisodeLoader: protocol must be one of {allowed}, got {protocol!r}")
    if protocol == "support_query":
        if not (shots and queries and shots > 0 and queries > 0):
            raise ValueError(
                "EpisodeLoader: support_query needs shots and queries of at least 1, got "
                f"{shots} and {queries}"
            )
        if delay is not None or sampler.uneven or sampler.instances != shots + queries:
            raise ValueError(
                "EpisodeLoader: support_query takes no delay, and a sampler without length whose "
                f"instances are shots + queries = {shots + queries}, got delay {delay} and "
                f"{'a length' if sampler.uneven else sampler.instances}"
            )
        return 0
    if shots is not None or queries is not None:
        raise ValueError(
            f"EpisodeLoader: shots and queries belong to support_query, got protocol {protocol}"
        )
    if protocol == "delayed" and (delay is None or delay < 1):
        raise ValueError(f"EpisodeLoader: delayed needs a delay of at least 1, got {delay}")
    if protocol == "offset" and delay is not None:
        raise ValueError(
            f"EpisodeLoader: offset has a delay of 1, got {delay}; use protocol delayed"
        )
    return delay or 1
