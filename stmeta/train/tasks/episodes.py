"""Few-shot episodes of images that fit into memory, such as Omniglot (Santoro et al. 2016)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from stmeta._errors import DataError
from stmeta.data.datasets.omniglot import load_omniglot
from stmeta.data.episodes.images import image_episodes
from stmeta.models.few_shot import FewShotClassifierConfig
from stmeta.train.optim import AdamWConfig, OptimConfig
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._episodes import EpisodeTask, EpisodeTaskConfig


class ImageTable(NamedTuple):
    """The images of one split."""

    images: Tensor
    """uint8 [classes, n, H, W] in CPU memory."""
    names: Sequence[str]
    """Of the classes."""


@dataclass(frozen=True, kw_only=True)
class ImageEpisodesConfig(EpisodeTaskConfig):
    """Name each image of an episode: its label comes one step late. A data set gives `load`."""

    model: FewShotClassifierConfig = field(default_factory=FewShotClassifierConfig.plain)
    steps: int = 6250
    batch_size: int = 16
    test_episodes: int = 1280
    image_size: int = 20
    shift: int = 2
    """Largest shift of a training image, in pixels."""
    rotation: float = math.pi / 16
    """Largest rotation of a training image, in radians."""
    optim: OptimConfig = field(
        default_factory=lambda: AdamWConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        )
    )
    evals: int = 10

    fixed = (*EpisodeTaskConfig.fixed, "image_size")

    @abstractmethod
    def load(self, context: TaskContext) -> tuple[ImageTable, ImageTable]:
        """The images to train on, and those of other classes to test on.

        Raises:
            DataError: they are not there.
        """

    def _tables(self, context: TaskContext) -> tuple[ImageTable, ImageTable]:
        return context.once((context.name, "images"), lambda: self.load(context))

    def check(self, context: TaskContext) -> None:
        """Load the images and make the model once."""
        self.build(context)

    def build(self, context: TaskContext) -> EpisodeTask:
        """Make the model and the episodes."""
        train, test = self._tables(context)
        loaders = (
            image_episodes(
                train.images,
                names=train.names,
                ways=self.ways,
                instances=self.instances,
                shift=self.shift,
                rotation=self.rotation,
                seed=context.seed,
                episodes=self.steps * self.batch_size,
                batch_size=self.batch_size,
            ),
            image_episodes(
                test.images,
                names=test.names,
                ways=self.ways,
                instances=self.instances,
                seed=context.seed + 1,
                episodes=self.test_episodes,
                batch_size=64,
            ),
        )
        torch.manual_seed(context.seed)
        pixels = train.images.shape[2] * train.images.shape[3]
        model = self.model.build(pixels, self.ways).to(context.device)
        return EpisodeTask(
            *(context, self, model, loaders), steps=self.steps, unit="episodes", metric="accuracy"
        )


@dataclass(frozen=True, kw_only=True)
class OmniglotConfig(ImageEpisodesConfig):
    """Handwritten characters; the classes are split as in the paper."""

    def load(self, context: TaskContext) -> tuple[ImageTable, ImageTable]:
        """Read Omniglot's zips or arrays.

        Raises:
            DataError: no folder is given, or it does not hold them.
        """
        if context.data is None:
            raise DataError(
                "data: Omniglot is not part of stmeta; pass --data FOLDER with "
                "images_background.zip and images_evaluation.zip from "
                "github.com/brendenlake/omniglot"
            )
        # Rotations make more classes to learn from; the test classes are those of the paper, as
        # drawn.
        train = load_omniglot(context.data, size=self.image_size, part="train")
        test = load_omniglot(context.data, size=self.image_size, part="test", rotations=False)
        return ImageTable(train.images, train.names), ImageTable(test.images, test.names)
