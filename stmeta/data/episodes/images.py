"""Episodes out of a table of small images in memory, such as Omniglot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta._util.hashing import uniforms
from stmeta.data.episodes.loader import EpisodeLoader
from stmeta.data.episodes.sampler import EpisodeSampler


def image_episodes(
    images: Tensor,
    *,
    names: Sequence[str] | None = None,
    ways: int = 5,
    instances: int = 10,
    length: int | None = None,
    shift: int = 0,
    rotation: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> EpisodeLoader:
    """Episodes of the classes of a table of images.

    Args:
        images: uint8 [classes, n, H, W], as for `ImageSource`.
        names: of the classes, as for `ImageSource`.
        ways: classes in an episode.
        instances: images of each class; with `support_query`, shots + queries.
        length: steps of an episode, instead of ways × instances; counts then differ.
        shift: as for `ImageSource`.
        rotation: as for `ImageSource`.
        seed: other seeds give other episodes.
        **options: `batch_size`, `episodes` and others of `EpisodeLoader`.

    Raises:
        ValueError: arguments disagree, or too few classes have enough images.
    """
    source = ImageSource(images, names=names, shift=shift, rotation=rotation)
    sampler = EpisodeSampler(
        source.labels, ways=ways, instances=instances, length=length, seed=seed
    )
    return EpisodeLoader(sampler, source, **options)


class ImageSource:
    """Images, float32 [B, L, H·W] in [0, 1].

    They are moved and turned at random (Santoro et al. 2016, section 4.1: "randomly translating and
    rotating"), as the seeds of the episodes say.

    Args:
        images: uint8 [classes, n, H, W] in CPU memory; 255 becomes 1.0, ink in Omniglot.
        names: of the classes, for keys; None = their row.
        shift: most pixels that an image moves along each axis; Santoro-like training: 2. What
            moves in is 0.
        rotation: largest angle in radians that an image is turned by, to either side; training
            as in Santoro et al.: pi / 16. Bilinear.

    Raises:
        ValueError: arguments disagree.
    """

    ahead = 0

    def __init__(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        shift: int = 0,
        rotation: float = 0.0,
    ) -> None:
        _check_table(images, names, shift, rotation)
        classes, count, self.height, self.width = images.shape
        self.shift, self.rotation = shift, rotation
        self.labels = np.repeat(np.arange(classes), count)
        """int64 [classes * n], of the samples."""
        names = names or [str(row) for row in range(classes)]
        self.keys = [f"{name}/{image:02d}" for name in names for image in range(count)]
        border = 0 if rotation else shift  # bilinear reading moves and turns in one go
        table = F.pad(images.flatten(0, 1), (border,) * 4).numpy()
        # [samples, 2 * border + 1, 2 * border + 1, H, W]: every place that an image can move to.
        self._views = np.lib.stride_tricks.sliding_window_view(
            table, (self.height, self.width), axis=(1, 2)
        )

    def start(
        self, samples: np.ndarray, seeds: np.ndarray
    ) -> Callable[[], tuple[Tensor, list[list[str]]]]:
        """Cut the images out; see `stmeta.data.episodes.loader.Source`."""
        keys = [[self.keys[i] for i in row] for row in samples.tolist()]
        return lambda: (self._pixels(samples, seeds).flatten(2), keys)

    def _pixels(self, samples: np.ndarray, seeds: np.ndarray) -> Tensor:
        """float32 [B, L, H, W] in [0, 1]."""
        if not self.shift and not self.rotation:
            return torch.from_numpy(self._views[samples, 0, 0]).float().mul_(1 / 255)
        random = uniforms(seeds, samples.shape[1], 4)[..., 1:]
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


def _check_table(images: Tensor, names: Sequence[str] | None, shift: int, rotation: float) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or images.device.type != "cpu":
        raise ValueError(
            "ImageSource: images must be uint8 [classes, n, H, W] on the CPU, got "
            f"{images.dtype} {list(images.shape)} on {images.device}"
        )
    if names is not None and len(names) != len(images):
        raise ValueError(
            f"ImageSource: names must name the {len(images)} classes, got {len(names)}"
        )
    if shift < 0 or not 0 <= rotation < np.inf:
        raise ValueError(
            f"ImageSource: shift and rotation must be at least 0, got {shift} and {rotation}"
        )
