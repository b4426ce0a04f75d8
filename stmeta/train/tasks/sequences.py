"""Algorithmic tasks on sequences of bits (Graves et al. 2014, section 4), with any memory."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stmeta.data.episodes import sequences
from stmeta.data.episodes.sequences import TaskBatch, TaskLoader, wrong_bits
from stmeta.memory import CellConfig, NTMConfig, trace_weights
from stmeta.models.sequence import SequenceModel
from stmeta.train import plots
from stmeta.train.optim import AdamWConfig, OptimConfig
from stmeta.train.tasks._base import LoaderTask, TaskConfig, TaskContext


@dataclass(frozen=True, kw_only=True)
class SequencesConfig(TaskConfig):
    """Give bits back from memory. What the sequences are, a class of its own says by `batch`."""

    memory: CellConfig = field(default_factory=NTMConfig)
    steps: int = 6250
    batch_size: int = 16
    max_length: int = 20
    """Longest sequence (or most items) in training."""
    test_lengths: tuple[int, ...] = (10, 20, 40, 60)
    bits: int = 8
    optim: OptimConfig = field(
        default_factory=lambda: AdamWConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        )
    )
    evals: int = 10

    fixed = ("memory", "bits")

    @abstractmethod
    def batch(
        self, number: int, *, batch_size: int, seed: int, longest: int, shortest: int | None = None
    ) -> TaskBatch:
        """Make batch `number` of a seed, with lengths from `shortest` (None = the task's own)."""

    def check(self, context: TaskContext) -> None:
        """Make the model and the data once."""
        if not self.test_lengths:
            raise ValueError(f"{context.flag('test-lengths')} must name at least one length")
        self.build(context)

    def build(self, context: TaskContext) -> SequencesTask:
        """Make the model and the loader."""
        torch.manual_seed(context.seed)
        first = self.batch(
            0, batch_size=self.batch_size, seed=context.seed, longest=self.max_length
        )
        cell = self.memory.build(first.x.shape[2])
        model = SequenceModel(cell, first.target.shape[2]).to(context.device)
        return SequencesTask(context, self, model)


class SequencesTask(LoaderTask):
    """Cross-entropy of every bit of the answer.

    Validation: sequences of fixed lengths, most of them longer than any in training.
    """

    unit = "sequences"
    metric, sign = "loss", -1

    def __init__(self, context: TaskContext, config: SequencesConfig, model: SequenceModel) -> None:
        self.name, self.device = context.name, context.device
        self.model, self.config = model, config
        self.steps = config.steps
        train = partial(
            config.batch,
            batch_size=config.batch_size,
            seed=context.seed,
            longest=config.max_length,
        )
        self.train_loader = TaskLoader(train, batches=config.steps)
        self.tests = {
            length: partial(
                config.batch, batch_size=64, seed=context.seed + 1, longest=length, shortest=length
            )
            for length in config.test_lengths
        }
        self.console_metrics = tuple(f"wrong_bits_{length}" for length in self.tests)

    def keys(self, batch: TaskBatch) -> list[str]:
        """Lengths, as sequences have no names."""
        return [f"a sequence of {int(length)} steps" for length in batch.lengths]

    def _cross_entropy(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        logits = self.model(batch.x)
        mask = batch.mask[..., None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits[mask], batch.target[mask])
        return loss, wrong_bits(logits.detach(), batch).mean()

    def loss(
        self, batch: TaskBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Cross-entropy of the bits of the answer."""
        loss, wrong = self._cross_entropy(batch.to(self.device))
        return loss, len(batch.x), {"wrong_bits": float(wrong)}

    def evaluate(self) -> dict[str, float]:
        """Loss at the first test length, and wrong bits of a sequence at every one."""
        figures: dict[str, float] = {}
        for length, task in self.tests.items():
            loss, wrong = self._cross_entropy(task(0).to(self.device))
            figures.setdefault("loss", float(loss))
            figures[f"wrong_bits_{length}"] = float(wrong)
        return figures

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Leave a picture of target and output at each length, and of where the memory looks."""
        with torch.inference_mode():
            for length, task in self.tests.items():
                batch = task(0).to(self.device)
                steps = batch.mask[0]
                target = batch.target[0][steps].cpu()
                output = torch.sigmoid(self.model(batch.x)[0][steps]).cpu()
                plots.bits(target, output, folder / f"length_{length}.png")
                if length == min(self.tests) and self.model.cell.rows:
                    trace = trace_weights(self.model, batch.x[:1])
                    title = f"{self.name}: a sequence of length {length}"
                    plots.weights(trace, folder / "weights.png", title=title)

    def describe(self, record: dict[str, Any]) -> str:
        """Wrong bits at each length."""
        final = record["final"]
        parts = (f"{final[f'wrong_bits_{k}']:.2f} at length {k}" for k in self.tests if final)
        return f"wrong bits of a sequence: {', '.join(parts)}"


def _lengths(name: str, longest: int, shortest: int | None) -> dict[str, int]:
    only = {} if shortest is None else {f"min_{name}": shortest}
    return {f"max_{name}": longest} | only


@dataclass(frozen=True, kw_only=True)
class CopyConfig(SequencesConfig):
    """Say a sequence again (section 4.1)."""

    def batch(
        self, number: int, *, batch_size: int, seed: int, longest: int, shortest: int | None = None
    ) -> TaskBatch:
        """See `stmeta.data.episodes.sequences.copy_task`."""
        lengths = _lengths("length", longest, shortest)
        return sequences.copy_task(
            number, batch_size=batch_size, bits=self.bits, seed=seed, **lengths
        )


@dataclass(frozen=True, kw_only=True)
class RepeatCopyConfig(SequencesConfig):
    """Say a sequence again a number of times (section 4.2)."""

    def batch(
        self, number: int, *, batch_size: int, seed: int, longest: int, shortest: int | None = None
    ) -> TaskBatch:
        """See `stmeta.data.episodes.sequences.repeat_copy_task`."""
        lengths: dict[str, Any] = _lengths("length", longest, shortest)
        return sequences.repeat_copy_task(
            number,
            batch_size=batch_size,
            bits=self.bits,
            seed=seed,
            scale_repeats=(1, 10),
            **lengths,
        )


@dataclass(frozen=True, kw_only=True)
class RecallConfig(SequencesConfig):
    """Shown one item of a list, say the next one (section 4.3)."""

    def batch(
        self, number: int, *, batch_size: int, seed: int, longest: int, shortest: int | None = None
    ) -> TaskBatch:
        """See `stmeta.data.episodes.sequences.associative_recall_task`."""
        lengths = _lengths("items", longest, shortest)
        return sequences.associative_recall_task(
            number, batch_size=batch_size, bits=self.bits, seed=seed, **lengths
        )
