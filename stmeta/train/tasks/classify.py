"""Action classification: the encoder with a linear head, on all tokens or with some left out."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.classes import trained_classes
from stmeta.models.classifier import VideoClassifier
from stmeta.train import plots
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._clips import (
    ClipTask,
    ClipTaskConfig,
    clip_loader,
    encoder_config,
    load_encoder,
    loader_config,
    to_model,
)
from stmeta.train.tasks._splits import check_classes, check_split, check_weights


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(ClipTaskConfig):
    """Action classification on the encoder of an earlier task."""

    init: str = "pretrain"
    """The task whose encoder it begins with, or "scratch"."""
    mask_ratio: float = 0.0
    """Share of tokens dropped in training; evaluation always sees all of them."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup; 0 turns it off."""
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    dropout: float = 0.0
    balanced: bool = False
    """Weigh classes by the inverse square root of their frequency in the loss."""
    views: int = 1
    """Clips per video at evaluation, spread over its length; logits are averaged."""

    def check(self, context: TaskContext) -> None:
        """Check the splits, their classes, and the weights to begin with."""
        check_classes(context, *(check_split(context, *pair) for pair in self._splits(context)))
        check_weights(context, "init", self.init)
        if self.mask_ratio:
            encoder_config(context).maskable()

    def build(self, context: TaskContext) -> ClassifyTask:
        """Make the model of the classes that there are, and open the loaders."""
        train, val = (clip_loader(context, *pair) for pair in self._splits(context))
        classes = trained_classes(train.index.labels, train.index.classes).names
        torch.manual_seed(context.seed)
        encoder = dataclasses.replace(
            encoder_config(context), drop_path=self.drop_path, dropout=self.dropout
        )
        model = VideoClassifier(encoder, num_classes=len(classes)).to(context.device)
        if self.init != "scratch":
            path = context.folder / self.init / "last.safetensors"
            load_encoder(model, path, context.flag("init"))
        return ClassifyTask(context, self, model, train, val)

    def _splits(self, context: TaskContext) -> list[tuple[str, LoaderConfig]]:
        size = self.batch_size
        train = loader_config(context, batch_size=size, train=True, seed_offset=1)
        val = loader_config(context, batch_size=size, train=False, views=self.views)
        return [("train", train), ("val", val)]


class ClassifyTask(ClipTask):
    """Cross-entropy on labelled clips; validation on all tokens of unseen clips."""

    metric, sign = "top1", 1
    console_metrics = ("loss", "top1", "macro_f1")

    def __init__(
        self,
        context: TaskContext,
        config: ClassifyConfig,
        model: VideoClassifier,
        train: ClipLoader,
        val: ClipLoader,
    ) -> None:
        super().__init__(context, config, train, val)
        self.model, self.config = model, config
        self.classes = model.num_classes
        labels, self.class_names = trained_classes(train.index.labels, train.index.classes)
        self._labels = torch.tensor(labels, device=self.device)
        names = "\0".join(self.class_names).encode("utf-8", "surrogateescape")
        self._names = zlib.crc32(names)
        self.weight = self._class_weight() if config.balanced else None

    def data_state(self) -> dict[str, int]:
        """Position of the data, and which classes they are."""
        return super().data_state() | {"classes": self._names}

    def load_data_state(self, state: dict[str, int]) -> None:
        """Go to a position that `data_state` returned.

        Raises:
            ValueError: the state is of other classes.
        """
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
        """Cross-entropy, with mixup where it is on."""
        video, label = to_model(batch, self.device), self._targets(batch.label.to(self.device))
        share, other = 1.0, label
        if self.config.mixup > 0:
            alpha = self.config.mixup
            share = float(np.random.default_rng(generator.initial_seed()).beta(alpha, alpha))
            video, other = mixup(video, share), label.flip(0)
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
        """Loss and accuracies on the validation clips."""
        logits, labels = self.predict()
        known = labels >= 0
        logits, labels = logits[known], labels[known]
        top = logits.topk(min(5, self.classes), dim=1).indices == labels[:, None]
        return {
            "loss": float(F.cross_entropy(logits, labels)),
            "top1": float(top[:, :1].any(1).float().mean()),
            "top5": float(top.any(1).float().mean()),
            "macro_f1": macro_f1(logits, labels, self.classes),
        }

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Add the interval of macro F1, and leave a picture of what is taken for what."""
        super().finish(record, folder)
        self.model.eval()
        with torch.inference_mode():
            logits, labels = self.predict()
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        record["final"] |= bootstrap_macro_f1(logits.argmax(1), labels, self.classes)
        record["chance"] = 1 / self.classes
        name = "confusion.png" if self.name == "classify" else f"confusion_{self.name}.png"
        plots.confusion(labels, logits.argmax(1), self.class_names, folder / name)

    def describe(self, record: dict[str, Any]) -> str:
        """Top-1, and macro F1 with its interval."""
        final, interval = record["final"], ""
        if "top1" not in final:
            return ""
        if "macro_f1_low" in final:
            interval = f" [{final['macro_f1_low']:.3f}, {final['macro_f1_high']:.3f}]"
        chance = f" (chance {record['chance']:.0%})" if "chance" in record else ""
        return f"top-1 {final['top1']:.1%}{chance}, macro F1 {final['macro_f1']:.3f}{interval}"


def mixup(video: Tensor, share: float) -> Tensor:
    """Mixup of uint8 clips with the flipped batch (Zhang et al. 2018, eq. 1); stays uint8."""
    return video.float().lerp_(video.flip(0).float(), 1 - share).round_().to(torch.uint8)


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Mean F1 of the classes that occur.

    Args:
        predicted: classes [n], or logits [n, classes].
        labels: int64 [n], true classes.
        classes: number of classes.
    """
    # Here, as it brings scipy.signal and transformers along: half the time that training starts in.
    from torchmetrics.functional.classification import multiclass_f1_score

    return float(multiclass_f1_score(predicted, labels, classes, average="macro"))


def bootstrap_macro_f1(
    predicted: Tensor, labels: Tensor, classes: int, *, rounds: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Macro F1 and its 95 % interval over resampled clips (percentile bootstrap, Efron 1979).

    Args:
        predicted: int64 [n], predicted classes.
        labels: int64 [n], true classes; -1 = unlabelled, left out.
        classes: number of classes.
        rounds: resamplings.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    pairs = predicted[labels >= 0].numpy(), labels[labels >= 0].numpy()

    def score(predicted: np.ndarray, labels: np.ndarray) -> float:
        return macro_f1(torch.from_numpy(predicted), torch.from_numpy(labels), classes)

    exact = low = high = score(*pairs)
    if len(pairs[0]) > 1:  # all resamplings of a single clip are the same
        low, high = bootstrap(
            pairs,
            score,
            n_resamples=rounds,
            batch=100,  # of the resamplings that are in memory at a time
            vectorized=False,
            paired=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return {"macro_f1": exact, "macro_f1_low": float(low), "macro_f1_high": float(high)}
