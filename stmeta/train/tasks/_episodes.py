"""Few-shot episodes as a task, whatever their steps show (Santoro et al. 2016, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.data.episodes.loader import EpisodeBatch, EpisodeLoader
from stmeta.data.loading.batch import require_finite
from stmeta.memory import trace_weights
from stmeta.models.few_shot import FewShotClassifier, FewShotClassifierConfig, matching_loss
from stmeta.train import plots
from stmeta.train.optim import AdamWConfig, OptimConfig
from stmeta.train.tasks._base import LoaderTask, TaskConfig, TaskContext


@dataclass(frozen=True, kw_only=True)
class EpisodeTaskConfig(TaskConfig):
    """What tasks on episodes have."""

    model: FewShotClassifierConfig = field(default_factory=FewShotClassifierConfig)
    """The memory, and how features and labels get into it."""
    ways: int = 5
    """Classes of an episode."""
    instances: int = 10
    """Samples of each class in an episode."""
    batch_size: int = 32
    """Episodes in a batch."""
    test_episodes: int = 1000
    optim: OptimConfig = field(
        default_factory=lambda: AdamWConfig(lr=1e-3, weight_decay=0.0, clip_grad=10.0)
    )
    matching: float = 0.0
    """With an encoder: weight of a loss on its features alone (`matching_loss`), for memories that
    give it no gradient to begin with."""

    fixed = ("model", "ways", "instances")


class EpisodeTask(LoaderTask):
    """Classify each sample of an episode from the samples and labels that came before it.

    Validation: episodes of classes that training never sees, always the same ones.
    """

    sign = 1

    def __init__(
        self,
        context: TaskContext,
        config: EpisodeTaskConfig,
        model: FewShotClassifier,
        loaders: tuple[EpisodeLoader, EpisodeLoader],
        *,
        steps: int,
        unit: str,
        metric: str,
    ) -> None:
        self.name, self.device = context.name, context.device
        self.model, self.config = model, config
        self.train_loader, self.test_loader = loaders
        self.steps, self.unit, self.metric = max(1, steps), unit, metric
        known = (k for k in (1, 2, 5, 10) if k <= config.instances)
        self.console_metrics = tuple(f"instance_{k}" for k in known)

    def keys(self, batch: EpisodeBatch) -> list[str]:
        """First sample of each episode, which tells the episode."""
        return [names[0] for names in batch.key]

    def _inputs(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        require_finite(batch.x, batch.key)
        return batch.x.to(self.device), batch.label.to(self.device)

    def loss(
        self, batch: EpisodeBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Cross-entropy over the steps that are scored.

        Raises:
            DataError: a sample holds NaN or infinite values; it is named.
        """
        x, label = self._inputs(batch)
        mask = batch.target_mask.to(self.device)
        logits, features = self.model(x, label, generator, with_features=True)
        loss = F.cross_entropy(logits[mask].float(), label[mask])
        if self.config.matching:
            loss = loss + self.config.matching * matching_loss(features, label)
        right = (logits.detach().argmax(2) == label)[mask].float().mean()
        count = label.numel() if self.unit == "clips" else len(label)
        return loss, count, {"accuracy": float(right)}

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy, and accuracy by how often the class has come: instance_1, ..."""
        instances = self.config.instances
        hits, counts, loss = torch.zeros(instances), torch.zeros(instances), 0.0
        self.test_loader.load_state_dict({"epoch": 0, "position": 0})  # always the same episodes
        for batch in self.test_loader:
            logits, mask = self.model(*self._inputs(batch)).float().cpu(), batch.target_mask
            loss += float(F.cross_entropy(logits[mask], batch.label[mask], reduction="sum"))
            right = (logits.argmax(2) == batch.label)[mask].float()
            instance = batch.instance[mask]
            hits.index_add_(0, instance, right)
            counts.index_add_(0, instance, torch.ones_like(right))
        figures = {"loss": loss / float(counts.sum()), "accuracy": float(hits.sum() / counts.sum())}
        shares = hits / counts.clamp(min=1)
        return figures | {
            f"instance_{k + 1}": float(shares[k]) for k in range(instances) if counts[k] > 0
        }

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Leave pictures of the accuracy, and of where the memory looks in one episode."""
        record["chance"] = 1 / self.config.ways
        name = "instances.png" if self.name == "episodes" else f"{self.name}.png"
        plots.instances(record, self.config.ways, self.config.batch_size, folder / name)
        if not self.model.cell.rows:
            return
        batch = self.test_loader.batch([0])
        self.model.eval()
        trace = trace_weights(self.model, *self._inputs(batch))
        plots.weights(
            trace,
            folder / ("weights.png" if self.name == "episodes" else f"{self.name}_weights.png"),
            title="an episode of new classes; below, the class of each step",
            marks=[str(int(label)) for label in batch.label[0]],
        )

    def describe(self, record: dict[str, Any]) -> str:
        """Accuracy by how often the class has come."""
        final = record["final"]
        known = [k for k in (1, 2, 5, 10) if f"instance_{k}" in final]
        parts = ", ".join(f"{k}: {final[f'instance_{k}']:.1%}" for k in known)
        chance = f" (chance {record['chance']:.0%})" if "chance" in record else ""
        return f"new classes, accuracy at {self.unit[:-1]} {parts}{chance}"
