"""Pictures and tables of a memory's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from stmeta.memory_stages import EpisodeStage, TaskStage
from stmeta.report import BLUE, GREEN, GREY, ORANGE, save_figure

SHADES = (GREY, BLUE, GREEN, ORANGE)


def pictures(stage: EpisodeStage | TaskStage, record: dict[str, Any], folder: Path) -> None:
    """Write what there is to see: curves, and for sequences the target beside the output."""
    if isinstance(stage, EpisodeStage):
        _instances(stage, record, folder / "instances.png")
        return
    _wrong_bits(stage, record, folder / "curves.png")
    with torch.inference_mode():
        for length, task in stage.tests.items():
            batch = task(0).to(stage.device)
            steps = batch.mask[0]
            target = batch.target[0][steps].cpu()
            output = torch.sigmoid(stage.model(batch.x)[0][steps]).cpu()
            bits(target, output, folder / f"length_{length}.png")


def summary(stage: EpisodeStage | TaskStage, record: dict[str, Any]) -> Table:
    """The last validation as a table."""
    final = record["final"]
    if isinstance(stage, EpisodeStage):
        table = Table(title="new classes, accuracy by how often the class has come")
        chosen = [f"instance_{k + 1}" for k in range(stage.instances)]
        values = [f"{100 * final[name]:.1f} %" for name in chosen if name in final]
        heads = [name.split("_")[1] for name in chosen if name in final]
    else:
        table = Table(title="wrong bits of a sequence")
        heads = [f"length {length}" for length in stage.tests]
        values = [f"{final[f'wrong_bits_{length}']:.2f}" for length in stage.tests]
    for head in heads:
        table.add_column(head, justify="right")
    table.add_row(*values)
    return table


def bits(target: Tensor, output: Tensor, path: Path) -> None:
    """Target, output and their difference of one sequence, [T, bits] in [0, 1]."""
    figure = Figure(figsize=(max(4.0, len(target) / 8), 3.6), layout="constrained")
    rows = (("target", target), ("output", output), ("difference", (output - target).abs()))
    for axis, (name, values) in zip(figure.subplots(3, 1), rows, strict=True):
        axis.imshow(values.T.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axis.set_ylabel(name)
        axis.set_xticks([])
        axis.set_yticks([])
    save_figure(figure, path)


def _instances(stage: EpisodeStage, record: dict[str, Any], path: Path) -> None:
    """Accuracy on new classes over training, a line for each instance, as in the paper."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    evals = record["evals"]
    for name, shade in zip(stage.shown, SHADES, strict=False):
        axis.plot(
            [item["step"] * stage.train.batch_size for item in evals],
            [100 * item[name] for item in evals],
            "o-",
            ms=3,
            color=shade,
            label=f"instance {name.split('_')[1]}",
        )
    axis.set(xlabel="training episodes", ylabel="accuracy on new classes, %", ylim=(0, 100))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def _wrong_bits(stage: TaskStage, record: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    steps = [item["step"] for item in record["history"]]
    axis.plot(steps, [item["wrong_bits"] for item in record["history"]], color=BLUE, alpha=0.2)
    for name, shade in zip(stage.shown, (GREEN, ORANGE, GREY, BLUE), strict=False):
        axis.plot(
            [item["step"] for item in record["evals"]],
            [item[name] for item in record["evals"]],
            "o-",
            ms=3,
            color=shade,
            label=f"length {name.split('_')[-1]}",
        )
    axis.set(xlabel="step", ylabel="wrong bits of a sequence", yscale="symlog")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    save_figure(figure, path)
