"""Few-shot episodes of clips, by the features of a frozen encoder, with any memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stmeta._errors import DataError
from stmeta.data.episodes.clips import FeatureSource
from stmeta.data.episodes.loader import EpisodeLoader
from stmeta.data.episodes.sampler import EpisodeSampler
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.index import ShardIndex
from stmeta.models.classifier import VideoClassifier
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._clips import (
    clip_loader,
    encoder_config,
    load_encoder,
    loader_config,
    to_model,
)
from stmeta.train.tasks._episodes import EpisodeTask, EpisodeTaskConfig
from stmeta.train.tasks._splits import check_split, check_weights


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(EpisodeTaskConfig):
    """Learn the classes of an episode from a few of their clips (Santoro et al. 2016)."""

    encoder: str = "classify"
    """Task whose encoder turns clips into features, or "scratch". It stays frozen."""
    episodes: int = 20_000
    views: int = 4
    """Augmented clips per training video in the table of features."""
    clip_batch_size: int = 32
    """Clips that the encoder sees at a time."""

    def check(self, context: TaskContext) -> None:
        """Check that both splits have classes for episodes, and the weights of the encoder."""
        for split, train in (("train", True), ("heldout", False)):
            made = loader_config(context, batch_size=self.clip_batch_size, train=train)
            self._check_episodes(context, check_split(context, split, made))
        check_weights(context, "encoder", self.encoder)
        self.model.build(encoder_config(context).dim, self.ways)

    def _check_episodes(self, context: TaskContext, index: ShardIndex) -> None:
        try:
            EpisodeSampler(index.labels, ways=self.ways, instances=self.instances)
        except ValueError as error:
            raise DataError(
                f"data: {context.name} cannot make episodes from {index.root}: {error} "
                f"({context.flag('ways')} {self.ways}, {context.flag('instances')} "
                f"{self.instances}), or leave the task out with --stage"
            ) from error

    def build(self, context: TaskContext) -> EpisodeTask:
        """Compute the features of all clips, and make the model and the episodes of them."""
        torch.manual_seed(context.seed)
        encoder = VideoClassifier(encoder_config(context), num_classes=1).to(context.device)
        if self.encoder != "scratch":
            path = context.folder / self.encoder / "last.safetensors"
            load_encoder(encoder, path, context.flag("encoder"))
        encoder.eval()
        train = self._loader(context, encoder, "train", views=self.views)
        test = self._loader(context, encoder, "heldout", views=1)
        torch.manual_seed(context.seed)
        model = self.model.build(encoder_config(context).dim, self.ways).to(context.device)
        return EpisodeTask(
            *(context, self, model, (train, test)),
            steps=self.episodes // self.batch_size,
            unit="clips",
            metric=f"instance_{min(5, self.instances)}",
        )

    def _loader(
        self, context: TaskContext, encoder: VideoClassifier, split: str, *, views: int
    ) -> EpisodeLoader:
        train = split == "train"
        made = loader_config(context, batch_size=self.clip_batch_size, train=train, seed_offset=2)
        with clip_loader(context, split, made) as clips:
            source, labels = feature_table(encoder, clips, views, context.device)
        seed = context.seed + (not train)
        sampler = EpisodeSampler(labels, ways=self.ways, instances=self.instances, seed=seed)
        episodes = self.episodes if train else self.test_episodes
        return EpisodeLoader(sampler, source, batch_size=self.batch_size, episodes=episodes)


@torch.inference_mode()
def feature_table(
    model: VideoClassifier, loader: ClipLoader, views: int, device: torch.device
) -> tuple[FeatureSource, np.ndarray]:
    """Features [views, n, D] of the videos of a split, and labels [n], in key order.

    View v of a training split is another random clip and crop of every video.
    """
    table: dict[int, list[Tensor]] = {}  # by position: two shards may use the same key
    for view in range(views):
        for batch in loader.sweep(view):
            assert batch.sample is not None
            features = model.features(to_model(batch, device)).float().cpu()
            for sample, row in zip(batch.sample.tolist(), features, strict=True):
                table.setdefault(sample, []).append(row)
    keys = loader.index.keys
    # A video that could not be read every time is left out.
    whole = [sample for sample, rows in table.items() if len(rows) == views]
    whole.sort(key=lambda sample: (keys[sample], sample))
    stacked = torch.stack([torch.stack(table[sample]) for sample in whole], dim=1)
    return FeatureSource(stacked, [keys[s] for s in whole]), loader.index.labels[whole]
