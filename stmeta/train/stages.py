"""The three stages of the paper as the trainer sees them: batches, loss, validation.

1. `PretrainStage`: masked video autoencoder (Feichtenhofer et al. 2022).
2. `ClassifyStage`: action classification on its encoder, with or without masking.
3. `FewShotStage`: episodes with a memory-augmented network (Santoro et al. 2016), encoder frozen.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score

from stmeta.data.episodes.clips import EpisodeLoader
from stmeta.data.loading.batch import ClipBatch, EpisodeBatch, require_finite
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.classes import trained_classes
from stmeta.models.classifier import VideoClassifier
from stmeta.models.mann import FewShotMANN
from stmeta.models.video_mae import VideoMAE
from stmeta.train import distributed
from stmeta.train.config import ClassifyConfig, FewShotConfig, PretrainConfig
from stmeta.train.stage_loaders import clip_loader as clip_loader


def to_model(batch: ClipBatch, device: torch.device) -> Tensor:
    """The clips of a batch as the models take them: uint8 [B, C, T, H, W], a view."""
    return batch.video.to(device, non_blocking=True).transpose(1, 2)


class _ClipStage:
    """What the stages that read clips share."""

    unit = "clips"

    def __init__(self, train: ClipLoader, val: ClipLoader, epochs: float, evals: int) -> None:
        self.train_loader, self.val_loader = train, val
        self.steps = max(1, round(epochs * len(train)))
        self.evals = evals

    def batches(self) -> Iterator[ClipBatch]:
        while True:
            yield from self.train_loader

    def data_state(self) -> dict[str, int]:
        return self.train_loader.state_dict()

    def load_data_state(self, state: dict[str, int]) -> None:
        self.train_loader.load_state_dict(state)

    def keys(self, batch: ClipBatch) -> list[str]:
        return list(batch.key)

    def val_batches(self) -> Iterator[ClipBatch]:
        self.val_loader.set_epoch(0)
        return iter(self.val_loader)


class PretrainStage(_ClipStage):
    """Reconstruct masked tokens; validation uses the same masks every time."""

    name = "pretrain"
    metric, sign = "loss", -1
    shown = ("loss",)

    def __init__(
        self, model: VideoMAE, config: PretrainConfig, train: ClipLoader, val: ClipLoader
    ) -> None:
        super().__init__(train, val, config.epochs, config.evals)
        self.model, self.config, self.optim = model, config, config.optim
        self.device = next(model.parameters()).device
        times, rows, columns = model.config.grid
        units = {"random": times * rows * columns, "tube": rows * columns, "frame": times}
        self._units = units[config.mask_mode]

    def loss(
        self, batch: ClipBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        if self.model.training:
            # As one process with all ranks' clips would: this rank's rows of the same noise.
            torch.rand(distributed.rank() * len(batch) * self._units, generator=generator)
        out = self.model(
            to_model(batch, self.device),
            mask_ratio=self.config.mask_ratio,
            mask_mode=self.config.mask_mode,
            generator=generator,
        )
        return out.loss, len(batch), {}

    def evaluate(self) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        total = count = 0.0
        for batch in self.val_batches():
            loss, clips, _ = self.loss(batch, generator)
            total, count = total + float(loss) * clips, count + clips
        return {"loss": total / count}


class ClassifyStage(_ClipStage):
    """Cross-entropy on labelled clips; validation on all tokens of unseen clips."""

    metric, sign = "top1", 1
    shown = ("loss", "top1", "macro_f1")

    def __init__(
        self,
        name: str,
        model: VideoClassifier,
        config: ClassifyConfig,
        train: ClipLoader,
        val: ClipLoader,
    ) -> None:
        super().__init__(train, val, config.epochs, config.evals)
        self.name, self.model, self.config, self.optim = name, model, config, config.optim
        self.device = next(model.parameters()).device
        self.classes = model.num_classes
        labels, names = trained_classes(train.index.labels, train.index.classes)
        self._labels = torch.tensor(labels, device=self.device)
        self._names = zlib.crc32("\0".join(names).encode("utf-8", "surrogateescape"))
        self.weight = self._class_weight() if config.balanced else None

    def data_state(self) -> dict[str, int]:
        return super().data_state() | {"classes": self._names}

    def load_data_state(self, state: dict[str, int]) -> None:
        if state.get("classes", self._names) != self._names:
            raise ValueError(
                f"{self.name}: the classes have other names than when the run was begun; use the "
                "same data"
            )
        super().load_data_state(state)

    def _class_weight(self) -> Tensor:
        labels = self.train_loader.index.labels
        counts = np.unique(labels[labels >= 0], return_counts=True)[1]
        weight = torch.from_numpy(counts.astype(np.float32)).rsqrt()
        return (weight / weight.mean()).to(self.device)

    def loss(
        self, batch: ClipBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        video, label = to_model(batch, self.device), self._targets(batch.label.to(self.device))
        share, other = 1.0, label
        if self.config.mixup > 0:
            alpha = self.config.mixup
            share = float(np.random.default_rng(generator.initial_seed()).beta(alpha, alpha))
            video, other = mix(video, share), label.flip(0)
        logits = self.model(video, mask_ratio=self.config.mask_ratio, generator=generator)
        loss = share * self._entropy(logits, label)
        if share < 1:
            loss = loss + (1 - share) * self._entropy(logits, other)
        known = label >= 0
        if not known.any():
            return loss, len(batch), {}  # nothing that could be right
        hits = (logits.detach().argmax(1) == label)[known].float().mean()
        return loss, len(batch), {"top1": float(hits)}

    def _entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        # Unlabelled clips (-1) take no part; where all are, a mean over none would be NaN.
        if not (label >= 0).any():
            return logits.float().sum() * 0.0
        return F.cross_entropy(
            logits.float(),
            label,
            weight=self.weight,
            ignore_index=-1,
            label_smoothing=self.config.label_smoothing,
        )

    def _targets(self, label: Tensor) -> Tensor:
        """Output that is right for each label; -1 = unlabelled, or not trained on."""
        place = torch.searchsorted(self._labels, label).clamp(max=len(self._labels) - 1)
        return torch.where(self._labels[place] == label, place, -1)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Logits [n, classes], averaged over views, and targets [n] of the validation split."""
        index = self.val_loader.index
        total, views = torch.zeros(len(index), self.classes), torch.zeros(len(index), 1)
        for batch in self.val_batches():
            assert batch.sample is not None  # by position: two shards may use the same key
            places, rows = batch.sample.cpu(), self.model(to_model(batch, self.device))
            total.index_add_(0, places, rows.float().cpu())
            views.index_add_(0, places, torch.ones(len(rows), 1))
        read = views[:, 0] > 0
        labels = torch.from_numpy(index.labels[read.numpy()]).to(self.device)
        return (total / views)[read], self._targets(labels).cpu()

    def evaluate(self) -> dict[str, float]:
        logits, labels = self.predict()
        known = labels >= 0
        logits, labels = logits[known], labels[known]
        top = logits.topk(min(5, self.classes), dim=1).indices == labels[:, None]
        return {
            "loss": float(F.cross_entropy(logits, labels)),
            "top1": float(top[:, :1].any(1).float().mean()),
            "top5": float(top.any(1).float().mean()),
            "macro_f1": float(multiclass_f1_score(logits, labels, self.classes, average="macro")),
        }


def mix(video: Tensor, share: float) -> Tensor:
    """Mixup of uint8 clips with the flipped batch (Zhang et al. 2018, eq. 1); stays uint8."""
    return video.float().lerp_(video.flip(0).float(), 1 - share).round_().to(torch.uint8)


class FewShotStage:
    """Classify each clip of an episode from the clips and labels that came before it."""

    name, unit = "fewshot", "clips"
    metric, sign = "instance_5", 1
    shown = ("instance_1", "instance_2", "instance_5", "instance_10")

    def __init__(
        self, model: FewShotMANN, config: FewShotConfig, train: EpisodeLoader, test: EpisodeLoader
    ) -> None:
        self.model, self.config, self.optim = model, config, config.optim
        self.train_loader, self.test_loader = train, test
        self.steps = max(1, config.episodes // config.batch_size)
        self.evals = config.evals
        self.device = next(model.parameters()).device
        if config.instances < 5:
            self.metric = f"instance_{config.instances}"

    def batches(self) -> Iterator[EpisodeBatch]:
        while True:
            yield from self.train_loader

    def data_state(self) -> dict[str, int]:
        return self.train_loader.state_dict()

    def load_data_state(self, state: dict[str, int]) -> None:
        self.train_loader.load_state_dict(state)

    def _features(self, batch: EpisodeBatch) -> Tensor:
        assert batch.features is not None  # both loaders serve a table of features
        return batch.features.to(self.device)

    def keys(self, batch: EpisodeBatch) -> list[str]:
        return [key for episode in batch.key for key in episode]

    def loss(
        self, batch: EpisodeBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        label = batch.label.to(self.device)
        features = self._features(batch)
        require_finite(features, batch.key)
        logits = self.model(features, label, generator=generator)
        loss = F.cross_entropy(logits.float().flatten(0, 1), label.flatten())
        hits = (logits.detach().argmax(2) == label).float().mean()
        return loss, label.numel(), {"accuracy": float(hits)}

    def evaluate(self) -> dict[str, float]:
        """Accuracy at the k-th clip of a class within an episode, on classes never trained on."""
        hits = torch.zeros(self.config.instances)
        seen = torch.zeros(self.config.instances)
        self.test_loader.load_state_dict({"epoch": 0, "position": 0})
        for batch in self.test_loader:
            label = batch.label.to(self.device)
            hit = (self.model(self._features(batch), label).argmax(2) == label).float().cpu()
            instance = batch.instance.cpu()
            hits.scatter_add_(0, instance.flatten(), hit.flatten())
            seen.scatter_add_(0, instance.flatten(), torch.ones(hit.numel()))
        return {f"instance_{k + 1}": float(hits[k] / seen[k]) for k in range(self.config.instances)}
