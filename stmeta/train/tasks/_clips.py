"""What tasks share that read clips: their loaders, their epochs, and an encoder's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmeta._errors import DataError
from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.loading.loader import ClipLoader
from stmeta.models._encoder import VideoEncoderConfig
from stmeta.models.classifier import VideoClassifier
from stmeta.train import checkpoint, distributed
from stmeta.train.tasks._base import LoaderTask, TaskConfig, TaskContext

SET_BY_TASKS = ("batch_size", "frames", "size", "train", "views", "seed", "device")
"""Fields of `RunConfig.clip` that are the tasks' own, the model's or the run's."""


def to_model(batch: ClipBatch, device: torch.device) -> Tensor:
    """The clips of a batch as the models take them: uint8 [B, C, T, H, W], a view."""
    return batch.video.to(device, non_blocking=True).transpose(1, 2)


def data_root(context: TaskContext) -> Path:
    """The folder with the splits.

    Raises:
        DataError: none is given.
    """
    if context.data is None:
        raise DataError(
            f"data: {context.name} needs videos; pass --data FOLDER, made with `stmeta shard`, or "
            "--data motions for the built-in motion clips"
        )
    return context.data


def encoder_config(context: TaskContext) -> VideoEncoderConfig:
    """The encoder of the run.

    Raises:
        ValueError: the recipe names none.
    """
    if context.model is None:
        raise ValueError(f"{context.name}: the recipe must name an encoder of clips as its model")
    return context.model


def loader_config(
    context: TaskContext, *, batch_size: int, train: bool, views: int = 1, seed_offset: int = 0
) -> LoaderConfig:
    """How a task reads a split; `train` switches shuffling and augmentation on."""
    model = encoder_config(context)
    return dataclasses.replace(
        context.clip or LoaderConfig(),
        batch_size=batch_size,
        frames=model.frames,
        size=model.image_size,
        train=train,
        views=views,
        seed=context.seed + seed_offset,
        device=context.device.type,
    )


def clip_loader(context: TaskContext, split: str, config: LoaderConfig) -> ClipLoader:
    """Open the loader of a split; in training every process reads its own part."""
    many = config.train
    return ClipLoader(
        data_root(context) / split,
        config,
        rank=distributed.rank() if many else 0,
        world_size=distributed.world_size() if many else 1,
    )


def load_encoder(model: VideoClassifier, path: Path, flag: str) -> None:
    """Put the encoder of another task into a model.

    Raises:
        DataError: the file is missing, damaged, or of another model.
    """
    weights = checkpoint.load_weights(path)
    try:
        model.load_encoder(weights)
    except ValueError as error:
        raise DataError(
            f"weights: {path} does not fit --model: {error}; use the settings that it was trained "
            f"with, or start from random weights with {flag} scratch"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ClipTaskConfig(TaskConfig):
    """What tasks have that train on clips, epoch by epoch."""

    epochs: float = 40
    batch_size: int = 32

    distributed = True


class ClipTask(LoaderTask):
    """What tasks share that train on clips and validate on others."""

    unit = "clips"

    def __init__(
        self, context: TaskContext, config: ClipTaskConfig, train: ClipLoader, val: ClipLoader
    ) -> None:
        self.name, self.device = context.name, context.device
        self.train_loader, self.val_loader = train, val
        self.steps = max(1, round(config.epochs * len(train)))

    def keys(self, batch: ClipBatch) -> list[str]:
        """Names of the clips in a batch."""
        return list(batch.key)

    def val_batches(self) -> Iterator[ClipBatch]:
        """The validation clips, always the same."""
        self.val_loader.set_epoch(0)
        return iter(self.val_loader)

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Add what could not be read to the record."""
        loaders = (self.train_loader, self.val_loader)
        record["skipped"] = [skip._asdict() for loader in loaders for skip in loader.skipped]

    def close(self) -> None:
        """Close the loaders."""
        with ExitStack() as stack:
            stack.callback(self.train_loader.close)
            stack.callback(self.val_loader.close)
