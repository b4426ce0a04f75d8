"""What a task is to the trainer, and what the config of one is to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stmeta.data.loading.config import LoaderConfig
from stmeta.models._encoder import VideoEncoderConfig
from stmeta.train.optim import AdamWConfig, OptimConfig

_T = TypeVar("_T")


class Task(Protocol):
    """What the trainer knows of a task. Implementations: the modules of `stmeta.train.tasks`."""

    name: str
    """In this run; also the name of its folder."""
    unit: str
    """What a batch is made of, "clips"."""
    model: nn.Module
    steps: int
    config: TaskConfig
    metric: str
    """The figure of `evaluate` that picks the best weights."""
    sign: int
    """1: higher is better, -1: lower is better."""
    console_metrics: tuple[str, ...]
    """Figures of `evaluate` for the console."""

    def batches(self) -> Iterator[Any]:
        """Yield batches for ever, from the current position."""
        ...

    def data_state(self) -> dict[str, int]:
        """Position of the data, as integers."""
        ...

    def load_data_state(self, state: dict[str, int]) -> None:
        """Go to a position that `data_state` returned."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, int, dict[str, float]]:
        """Return the loss, the number of units in the batch, and figures for the curves."""
        ...

    def keys(self, batch: Any) -> list[str]:
        """Names of what is in a batch, for error messages."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Figures on validation data."""
        ...

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Add to the record of a finished training, and leave pictures in the run's folder."""
        ...

    def describe(self, record: dict[str, Any]) -> str:
        """The result in words, for the table at the end."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
        ...


class LoaderTask:
    """What tasks share that read from one loader with an exact state. Takes a `Task`'s part."""

    train_loader: Any
    console_metrics: tuple[str, ...]

    def batches(self) -> Iterator[Any]:
        """Yield batches for ever, from the current position."""
        while True:
            yield from self.train_loader

    def data_state(self) -> dict[str, int]:
        """Position of the data, as integers."""
        return self.train_loader.state_dict()

    def load_data_state(self, state: dict[str, int]) -> None:
        """Go to a position that `data_state` returned."""
        self.train_loader.load_state_dict(state)

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Add to the record of a finished training, and leave pictures: none."""

    def describe(self, record: dict[str, Any]) -> str:
        """The result in words: the figures that the console shows."""
        final = record["final"]
        return ", ".join(f"{k} {final[k]:.4g}" for k in self.console_metrics if k in final)

    def close(self) -> None:
        """Let go of files and threads: there are none."""


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task is built from, beside its own config."""

    name: str
    """Of the task in this run."""
    folder: Path
    """Of the run."""
    order: tuple[str, ...] = ()
    """All tasks of the run, in their order."""
    data: Path | None = None
    model: VideoEncoderConfig | None = None
    clip: LoaderConfig | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    opened: dict[Any, Any] = field(default_factory=dict)
    """What the tasks of a run have opened, see `once`."""

    def once(self, key: Any, make: Callable[[], _T]) -> _T:
        """Make something at the first call with this key, for all tasks of the run."""
        if key not in self.opened:
            self.opened[key] = make()
        return self.opened[key]

    def flag(self, name: str) -> str:
        """The option of the command line that sets a field of this task."""
        return f"--{self.name}.{name}".replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(ABC):
    """What every task has. It checks and builds the task that it configures."""

    optim: OptimConfig = field(default_factory=AdamWConfig)
    evals: int = 5
    """Validations over the task, evenly spaced, the last at its end."""

    distributed: ClassVar[bool] = False
    """Whether several processes train together; else the first one trains alone."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Fields that a checkpoint is of: `--resume` cannot change them."""

    def check(self, context: TaskContext) -> None:  # noqa: B027 - to be overridden, or not
        """Find out before the first step of the run, for all its tasks, whether this one can run.

        Raises:
            DataError: data or weights are missing.
            ValueError: a setting does not fit them.
        """

    @abstractmethod
    def build(self, context: TaskContext) -> Task:
        """Make the task, with its model and its data. `Task.close` ends it."""
