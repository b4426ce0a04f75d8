"""Trains one task: steps, checkpoints, validation, progress. Knows no model and no data set.

Every random choice of a step is a function of (seed, task, step), and batches come from a plan
that is a function of its position, so a run that was killed and resumed ends with the same bits.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from stmeta._errors import DataError
from stmeta.train import checkpoint, distributed
from stmeta.train.config import RunConfig
from stmeta.train.tasks._base import Task


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the state before that step was saved."""


class Trainer:
    """Trains one task to its end, or from its last checkpoint to its end."""

    def __init__(
        self, task: Task, config: RunConfig, *, device: torch.device, console: Console
    ) -> None:
        self.task, self.config, self.device, self.console = task, config, device, console
        self.folder = config.folder / task.name
        self._last = self.folder / "last.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps = min(task.steps, config.max_steps or task.steps)
        self.optimizer = task.config.optim.build(task.model)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.evals: list[dict[str, float]] = []
        self.best = -math.inf
        self.seconds = self.waited = 0.0
        self.clips = 0

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Train; returns the record that goes into metrics.json.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
        """
        if resume and self._last.exists():
            self._load()
        evals = self.task.config.evals
        eval_steps = {round(self.steps * (i + 1) / evals) for i in range(evals)}
        with (
            _writer(self.folder, self.step) as writer,
            progress_bar(self.console) as bar,
        ):
            line = bar.add_task(self.task.name, total=self.steps, completed=self.step, note="")
            source = self.task.batches()
            with interruptible() as interrupted:
                while self.step < self.steps:
                    self._train_step(source, writer)
                    bar.update(line, completed=self.step, note=self._note())
                    if self.step in eval_steps:
                        self._evaluate(writer)
                    stop = interrupted() and self.step < self.steps
                    if stop or self.step % self.config.save_every == 0 or self.step == self.steps:
                        self._save()
                    if stop:
                        raise KeyboardInterrupt
        return self._record()

    def _train_step(self, source: Iterator[Any], writer: SummaryWriter | None) -> None:
        began = time.perf_counter()
        before = self.task.data_state()
        batch = next(source)
        waited = time.perf_counter() - began
        rate = self._set_learning_rate()
        # Masks, dropout and drop path: the same in an interrupted and in an uninterrupted run.
        # `generator` is the same on all ranks; dropout differs, as their clips do.
        seed = step_seed(self.config.seed, self.task.name, self.step)
        torch.manual_seed(seed + (distributed.rank() << 40))
        generator = torch.Generator().manual_seed(seed)
        self.task.model.train()
        try:
            with precision(self.device, self.config.precision):
                loss, clips, figures = self.task.loss(batch, generator)
        except DataError:
            self._save(before)
            raise
        value = distributed.mean(loss)
        if not math.isfinite(value):
            self._save(before)
            raise NonFiniteLossError(
                f"{self.task.name}: the loss is {value} at step {self.step}; {self.task.unit}: "
                f"{', '.join(self.task.keys(batch))}. The state before this step is in "
                f"{self._last}; lower the learning rate"
                + (" or use --precision fp32" if self.config.precision != "fp32" else "")
            )
        loss.backward()
        distributed.average_gradients(self.task.model.parameters())
        if (limit := self.task.config.optim.clip_grad) > 0:
            nn.utils.clip_grad_norm_(self.task.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.clips += clips * distributed.world_size()
        self.waited += waited
        self.seconds += time.perf_counter() - began
        self.history.append({"step": self.step, "loss": value, "lr": rate, **figures})
        if writer is not None:
            for name, figure in {"loss": value, "lr": rate, **figures}.items():
                writer.add_scalar(f"train/{name}", figure, self.step)

    def _set_learning_rate(self) -> float:
        rate = self.task.config.optim.learning_rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def _evaluate(self, writer: SummaryWriter | None) -> None:
        if not distributed.is_main_process():
            distributed.barrier()
            return
        began = time.perf_counter()
        self.task.model.eval()
        with torch.inference_mode(), precision(self.device, self.config.precision):
            figures = self.task.evaluate()
        for name, figure in figures.items():
            assert writer is not None
            writer.add_scalar(f"val/{name}", figure, self.step)
        self.evals.append({"step": self.step, **figures})
        metrics = {k: v for k, v in figures.items() if k in self.task.console_metrics}
        self.console.print(
            f"[dim]{self.task.name:>15} {self.step:>6}/{self.steps}[/]  {self._note()}  "
            + "  ".join(f"val {k} {v:.4g}" for k, v in metrics.items())
            + f"  [dim]({time.perf_counter() - began:.1f} s)[/]",
            highlight=False,
            soft_wrap=True,
        )
        score = self.task.sign * figures[self.task.metric]
        if score > self.best:
            self.best = score
            checkpoint.save_weights(self.task.model, self.folder / "best.safetensors")
        distributed.barrier()

    def _note(self) -> str:
        recent = self.history[-50:]
        loss = sum(item["loss"] for item in recent) / max(len(recent), 1)
        speed = self.clips / max(self.seconds, 1e-9)
        wait = self.waited / max(self.seconds, 1e-9)
        return f"loss {loss:.4f}  {speed:,.0f} {self.task.unit}/s  data wait {wait:.0%}"

    def _record(self) -> dict[str, Any]:
        return {
            "steps": self.step,
            "seconds": self.seconds,
            "clips_per_second": self.clips / max(self.seconds, 1e-9),
            "data_wait_share": self.waited / max(self.seconds, 1e-9),
            "history": self.history,
            "evals": self.evals,
            "final": self.evals[-1] if self.evals else {},
        }

    def _save(self, data: dict[str, int] | None = None) -> None:
        if not distributed.is_main_process():
            return
        state = {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": data or self.task.data_state(),
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "evals": self.evals,
            "seconds": self.seconds,
            "waited": self.waited,
            "clips": self.clips,
        }
        checkpoint.save_state(state, self._last)
        checkpoint.save_weights(self.task.model, self.folder / "last.safetensors")

    def _load(self) -> None:
        state = checkpoint.load_state(self._last, self.device)
        checkpoint.restore(
            state, self.task.model, self.optimizer, self._last, self.task.config.optim.state_names()
        )
        try:
            self.task.load_data_state(state["data"])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"--resume: {self._last} is of other data or another order of them than --data and "
                f"the settings give now: {error}"
            ) from error
        for name in ("step", "history", "evals", *checkpoint.FIGURES):
            setattr(self, name, state[name])


@contextmanager
def _writer(folder: Path, step: int) -> Iterator[SummaryWriter | None]:
    """TensorBoard's files, written by one process."""
    if not distributed.is_main_process():
        yield None
        return
    with SummaryWriter(str(folder), purge_step=step) as writer:
        yield writer


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back until the step is whole; a second one interrupts at once."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def progress_bar(console: Console) -> Progress:
    """One line: name, bar, steps, loss and speed, time left."""
    return Progress(
        TextColumn("{task.description:>15}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def precision(device: torch.device, name: str) -> torch.autocast:
    """Autocast for bf16, or a context that does nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def step_seed(seed: int, task: str, step: int) -> int:
    """A seed for one step, different for every task."""
    return (seed * 1_000_003 + zlib.crc32(task.encode()) * 7919 + step) & 0x7FFF_FFFF_FFFF_FFFF
