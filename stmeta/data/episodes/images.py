"""Few-shot episodes out of a table of small images in memory, such as Omniglot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta._util.hashing import hash64
from stmeta.data.episodes.clips import Episode, EpisodeSampler, instance_numbers
from stmeta.data.loading.batch import TensorFields
from stmeta.data.loading.resume import ResumableLoader

Protocol = Literal["offset", "delayed", "support_query"]


@dataclass(frozen=True)
class ImageEpisodeBatch(TensorFields):
    """B episodes of L images of H × W pixels."""

    x: Tensor
    """float32 [B, L, H·W] in [0, 1]."""
    given_label: Tensor
    """float32 [B, L, ways], one-hot: the label that a model is told at this step; zeros = none."""
    label: Tensor
    """int64 [B, L], 0 ... ways - 1; every episode numbers its classes anew."""
    target_mask: Tensor
    """bool [B, L]: the steps that are scored."""
    instance: Tensor
    """int64 [B, L], how many images of this class the episode has shown before this one."""
    class_id: Tensor
    """int64 [B, L], row of the table."""
    key: list[list[str]]
    """Names of the images, per episode."""

    def __len__(self) -> int:
        return len(self.key)


class ImageEpisodes(ResumableLoader):
    """Delivers batches of episodes of images.

    Protocols, by what is told beside image t and what is scored:

    - `offset`: the label of image t - 1; every step (Santoro et al. 2016, figure 1a).
    - `delayed`: the label of image t - delay; every step.
    - `support_query`: first `shots` images of each class, each with its own label, then `queries`
      images of each class without; the latter. Both parts are shuffled.

    Like `EpisodeLoader`, it yields to the end of the epoch and then stands at the start of the next
    one, whose episodes are new; `state_dict` is exact. Images are moved and turned at random
    (Santoro et al. 2016, section 4.1: "randomly translating and rotating"), as (seed, number) say.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        episodes: int,
        names: Sequence[str] | None = None,
        batch_size: int = 16,
        ways: int = 5,
        instances: int | None = None,
        length: int | None = None,
        protocol: Protocol = "offset",
        delay: int | None = None,
        shots: int | None = None,
        queries: int | None = None,
        shift: int = 0,
        rotation: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Serve a table.

        Args:
            images: uint8 [classes, n, H, W] in CPU memory; 255 becomes 1.0, ink in Omniglot.
            episodes: episodes in an epoch.
            names: of the classes, for keys; None = their row.
            batch_size: episodes in a batch; the last batch of an epoch may be smaller.
            ways: classes in an episode.
            instances: images of each class; None = 10 where nothing else decides it.
            length: steps of an episode, instead of ways × instances; counts then differ.
            protocol: see above.
            delay: with `delayed`, at least 1; 1 is the same as `offset`.
            shots: with `support_query`, images of each class with a label.
            queries: with `support_query`, images of each class without.
            shift: most pixels that an image moves along each axis; Santoro-like training: 2. What
                moves in is 0.
            rotation: largest angle in radians that an image is turned by, to either side; training
                as in Santoro et al.: pi / 16. Bilinear.
            seed: other seeds give other episodes.

        Raises:
            ValueError: arguments disagree, or too few classes have enough images.
        """
        _check_table(images, names, shift, rotation)
        if batch_size < 1 or episodes < 1:
            raise ValueError(
                f"ImageEpisodes: batch_size and episodes must be at least 1, got {batch_size} and "
                f"{episodes}"
            )
        self.delay = _check_protocol(protocol, delay, shots, queries, instances, length)
        if protocol == "support_query":
            instances = (shots or 0) + (queries or 0)
        classes, count, self.height, self.width = images.shape
        labels = np.repeat(np.arange(classes), count)
        steps = 10 if instances is None else instances
        self.sampler = EpisodeSampler(labels, ways=ways, instances=steps, length=length, seed=seed)
        self.protocol, self.shots = protocol, shots
        self.batch_size, self.episodes = batch_size, episodes
        self.shift, self.rotation = shift, rotation
        names = names or [str(row) for row in range(classes)]
        self.keys = [f"{name}/{image:02d}" for name in names for image in range(count)]
        border = 0 if rotation else shift  # bilinear reading moves and turns in one go
        table = F.pad(images.flatten(0, 1), (border,) * 4).numpy()
        # [samples, 2 * border + 1, 2 * border + 1, H, W]: every place that an image can move to.
        self._views = np.lib.stride_tricks.sliding_window_view(
            table, (self.height, self.width), axis=(1, 2)
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.episodes // self.batch_size)

    def __iter__(self) -> Iterator[ImageEpisodeBatch]:
        """Yield batches from the current position to the end of the epoch."""
        epoch = self._epoch
        while self._epoch == epoch:
            first = epoch * self.episodes + self._position * self.batch_size
            last = min(first + self.batch_size, (epoch + 1) * self.episodes)
            batch = self.batch(range(first, last))
            self._advance()
            yield batch

    def batch(self, numbers: Sequence[int]) -> ImageEpisodeBatch:
        """Make the episodes of these numbers, a pure function of the arguments and the seed."""
        episodes = [self.sampler(number) for number in numbers]
        seeds = np.array([episode.seed for episode in episodes], np.uint64)
        samples, labels, class_ids = self._sequences(episodes, seeds)
        instance = instance_numbers(labels)
        scored = np.ones(labels.shape, bool)
        one_hot = np.eye(self.sampler.ways, dtype=np.float32)[labels]
        given = np.zeros_like(one_hot)
        if self.shots is not None:
            scored = instance >= self.shots
            given[~scored] = one_hot[~scored]
        else:
            given[:, self.delay :] = one_hot[:, : -self.delay]
        return ImageEpisodeBatch(
            x=self._pixels(samples, seeds).flatten(2),
            given_label=torch.from_numpy(given),
            label=torch.from_numpy(labels),
            target_mask=torch.from_numpy(scored),
            instance=torch.from_numpy(instance),
            class_id=torch.from_numpy(class_ids),
            key=[[self.keys[i] for i in row] for row in samples.tolist()],
        )

    def _sequences(self, episodes: list[Episode], seeds: np.ndarray) -> tuple[np.ndarray, ...]:
        """Samples, labels and class ids, int64 [B, L]; support before queries."""
        found = (
            np.stack([episode.samples for episode in episodes]),
            np.stack([episode.labels for episode in episodes]).astype(np.int64),
            np.stack([episode.class_ids for episode in episodes]),
        )
        if self.shots is None:
            return found
        # The plan's own order would not do: sorted by part, its orders are not equally likely.
        random = _uniform(seeds, found[1].shape[1], 1)[..., 0]
        order = np.argsort(random + (instance_numbers(found[1]) >= self.shots), axis=1)
        samples, labels, class_ids = (np.take_along_axis(field, order, 1) for field in found)
        return samples, labels, class_ids

    def _pixels(self, samples: np.ndarray, seeds: np.ndarray) -> Tensor:
        """float32 [B, L, H, W] in [0, 1]."""
        if not self.shift and not self.rotation:
            return torch.from_numpy(self._views[samples, 0, 0]).float().mul_(1 / 255)
        random = _uniform(seeds, samples.shape[1], 4)[..., 1:]
        places = (random[..., :2] * (2 * self.shift + 1)).astype(np.int64)  # of [-shift, shift]
        if not self.rotation:
            moved = self._views[samples, places[..., 0], places[..., 1]]
            return torch.from_numpy(moved).float().mul_(1 / 255)
        down, right = (self.shift - places[..., axis].reshape(-1) for axis in (0, 1))
        angle = (2 * random[..., 2].reshape(-1) - 1) * self.rotation
        flat = torch.from_numpy(self._views[samples.reshape(-1), 0, 0]).float().mul_(1 / 255)
        return _turn(flat, down, right, angle).view(*samples.shape, self.height, self.width)


def _turn(images: Tensor, down: np.ndarray, right: np.ndarray, angle: np.ndarray) -> Tensor:
    """Turn about the centre, then move; bilinear, zeros outside.

    Args:
        images: float32 [n, H, W].
        down: [n] pixels.
        right: [n] pixels.
        angle: [n] radians, clockwise as seen on a screen.
    """
    count, height, width = images.shape
    cos, sin = np.cos(angle), np.sin(angle)
    # Where does pixel (x, y) come from? source = R(-angle) · (pixel - move), from the centre, in
    # half sides as grid_sample counts. Sums of rows and columns: a product (affine_grid) takes much
    # longer, and its bits depend on the number of threads.
    ratio = height / width
    rows = [cos, sin * ratio, -(cos * right + sin * down) * 2 / width]
    rows += [-sin / ratio, cos, (sin * right - cos * down) * 2 / height]
    theta = torch.from_numpy(np.stack(rows, 1)).float().view(count, 2, 3, 1, 1)
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    y = (torch.arange(height)[:, None] + 0.5) * 2 / height - 1
    grid = theta[:, :, 0] * x + (theta[:, :, 1] * y + theta[:, :, 2])  # [n, 2, H, W]
    grid = grid.permute(0, 2, 3, 1)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _uniform(seeds: np.ndarray, steps: int, numbers: int) -> np.ndarray:
    """Random values in [0, 1), float64 [B, steps, numbers]: `sampler.uniform` for many at once.

    Args:
        seeds: uint64 [B].
        steps: L.
        numbers: values per step.
    """
    state = np.array([hash64(int(seed)) for seed in seeds], np.uint64)[:, None]
    state = (state ^ np.arange(steps * numbers, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)) * 2.0**-53).reshape(len(seeds), steps, numbers)


def _check_table(images: Tensor, names: Sequence[str] | None, shift: int, rotation: float) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or images.device.type != "cpu":
        raise ValueError(
            "ImageEpisodes: images must be uint8 [classes, n, H, W] on the CPU, got "
            f"{images.dtype} {list(images.shape)} on {images.device}"
        )
    if names is not None and len(names) != len(images):
        raise ValueError(
            f"ImageEpisodes: names must name the {len(images)} classes, got {len(names)}"
        )
    if shift < 0 or not 0 <= rotation < np.inf:
        raise ValueError(
            f"ImageEpisodes: shift and rotation must be at least 0, got {shift} and {rotation}"
        )


def _check_protocol(
    protocol: str,
    delay: int | None,
    shots: int | None,
    queries: int | None,
    instances: int | None,
    length: int | None,
) -> int:
    """Steps from an image to its label."""
    if protocol not in get_args(Protocol):
        allowed = ", ".join(get_args(Protocol))
        raise ValueError(f"ImageEpisodes: protocol must be one of {allowed}, got {protocol!r}")
    if protocol == "support_query":
        if not (shots and queries and shots > 0 and queries > 0):
            raise ValueError(
                "ImageEpisodes: support_query needs shots and queries of at least 1, got "
                f"{shots} and {queries}"
            )
        if not (delay is instances is length is None):
            raise ValueError(
                "ImageEpisodes: support_query takes shots and queries instead of delay, instances "
                f"and length, got {delay}, {instances} and {length}"
            )
        return 0
    if shots is not None or queries is not None:
        raise ValueError(
            f"ImageEpisodes: shots and queries belong to support_query, got protocol {protocol}"
        )
    if protocol == "delayed" and (delay is None or delay < 1):
        raise ValueError(f"ImageEpisodes: delayed needs a delay of at least 1, got {delay}")
    if protocol == "offset" and delay is not None:
        raise ValueError(
            f"ImageEpisodes: offset has a delay of 1, got {delay}; use protocol delayed"
        )
    return delay or 1
