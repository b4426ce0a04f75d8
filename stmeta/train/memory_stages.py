"""Training of a memory alone, as the trainer sees it: few-shot episodes, and sequences of bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.data.episodes.images import ImageEpisodeBatch, ImageEpisodes
from stmeta.data.episodes.sequences import TaskBatch, TaskLoader, wrong_bits
from stmeta.data.loading.batch import require_finite
from stmeta.models.mann import matching_loss
from stmeta.models.sequence import SequenceModel
from stmeta.train.config import MemoryConfig


class EpisodeStage:
    """Name each image of an episode (Santoro et al. 2016): its label comes one step late.

    Validation: episodes of classes that training never sees, always the same ones.
    """

    name, unit = "episodes", "episodes"
    metric, sign = "accuracy", 1

    def __init__(
        self,
        model: nn.Module,
        config: MemoryConfig,
        train: ImageEpisodes,
        test: ImageEpisodes,
    ) -> None:
        self.model: nn.Module = model
        self.train, self.test = train, test
        self.steps, self.evals, self.optim = config.steps, config.evals, config.optim
        self.instances, self.encoded = config.instances, bool(config.encoder)
        self.matching = config.matching if config.encoder else 0.0
        self.shown = tuple(f"instance_{k}" for k in (1, 2, 5, 10) if k <= config.instances)
        self.device = next(model.parameters()).device

    def batches(self) -> Iterator[ImageEpisodeBatch]:
        while True:
            yield from self.train

    def data_state(self) -> dict[str, int]:
        return self.train.state_dict()

    def load_data_state(self, state: dict[str, int]) -> None:
        self.train.load_state_dict(state)

    def keys(self, batch: ImageEpisodeBatch) -> list[str]:
        """First image of each episode, which tells the episode."""
        return [names[0] for names in batch.key]

    def inputs(self, batch: ImageEpisodeBatch) -> tuple[Tensor, ...]:
        """What the model takes."""
        if self.encoded:
            return batch.x.to(self.device), batch.label.to(self.device)
        return (torch.cat([batch.x, batch.given_label], 2).to(self.device),)

    def logits(self, batch: ImageEpisodeBatch) -> Tensor:
        """Logits [B, L, ways].

        Raises:
            DataError: an image holds NaN or infinite values; it is named.
        """
        require_finite(batch.x, batch.key)
        return self.model(*self.inputs(batch))

    def loss(
        self, batch: ImageEpisodeBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        label, mask = batch.label.to(self.device), batch.target_mask.to(self.device)
        if self.matching:
            require_finite(batch.x, batch.key)
            logits, features = self.model(*self.inputs(batch), with_features=True)
            extra = self.matching * matching_loss(features, label)
        else:
            logits, extra = self.logits(batch), 0.0
        right = (logits.argmax(2) == label)[mask].float().mean()
        loss = F.cross_entropy(logits[mask], label[mask]) + extra
        return loss, len(label), {"accuracy": float(right)}

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy, and accuracy by how often the class has come: instance_1, ..."""
        hits, counts = torch.zeros(self.instances), torch.zeros(self.instances)
        loss = 0.0
        self.test.load_state_dict({"epoch": 0, "position": 0})  # always the same episodes
        for batch in self.test:
            logits, mask = self.logits(batch).cpu(), batch.target_mask
            loss += float(F.cross_entropy(logits[mask], batch.label[mask], reduction="sum"))
            right = (logits.argmax(2) == batch.label)[mask].float()
            instance = batch.instance[mask]
            hits.index_add_(0, instance, right)
            counts.index_add_(0, instance, torch.ones_like(right))
        figures = {"loss": loss / float(counts.sum()), "accuracy": float(hits.sum() / counts.sum())}
        shares = hits / counts.clamp(min=1)
        return figures | {
            f"instance_{k + 1}": float(shares[k]) for k in range(self.instances) if counts[k] > 0
        }


class TaskStage:
    """Give bits back from memory (Graves et al. 2014, section 4).

    Validation: sequences of fixed lengths, most of them longer than any in training.
    """

    name, unit = "sequences", "sequences"
    metric, sign = "loss", -1

    def __init__(
        self,
        model: SequenceModel,
        config: MemoryConfig,
        task: Callable[[int], TaskBatch],
        tests: dict[int, Callable[[int], TaskBatch]],
    ) -> None:
        self.model: nn.Module = model
        self.steps, self.evals, self.optim = config.steps, config.evals, config.optim
        self.train, self.tests = TaskLoader(task, batches=config.steps), tests
        self.shown = tuple(f"wrong_bits_{length}" for length in tests)
        self.device = next(model.parameters()).device

    def batches(self) -> Iterator[TaskBatch]:
        while True:
            yield from self.train

    def data_state(self) -> dict[str, int]:
        return self.train.state_dict()

    def load_data_state(self, state: dict[str, int]) -> None:
        self.train.load_state_dict(state)

    def keys(self, batch: TaskBatch) -> list[str]:
        return [f"a sequence of {int(length)} steps" for length in batch.lengths]

    def loss(
        self, batch: TaskBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        batch = batch.to(self.device)
        logits = self.model(batch.x)
        mask = batch.mask[..., None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits[mask], batch.target[mask])
        wrong = float(wrong_bits(logits.detach(), batch).mean())
        return loss, len(batch.x), {"wrong_bits": wrong}

    def evaluate(self) -> dict[str, float]:
        """Loss at the first test length, and wrong bits of a sequence at every one."""
        figures: dict[str, float] = {}
        for length, task in self.tests.items():
            batch = task(0).to(self.device)
            logits = self.model(batch.x)
            mask = batch.mask[..., None].expand_as(logits)
            loss = F.binary_cross_entropy_with_logits(logits[mask], batch.target[mask])
            figures.setdefault("loss", float(loss))
            figures[f"wrong_bits_{length}"] = float(wrong_bits(logits, batch).mean())
        return figures
