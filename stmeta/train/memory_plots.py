"""Pictures and tables of a memory's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor, nn

from stmeta.memory.lstm import LSTMCell
from stmeta.memory.trace import WeightTrace, trace_weights
from stmeta.train.memory_stages import EpisodeStage, TaskStage
from stmeta.train.plots import BLUE, GREEN, GREY, ORANGE, save_figure

SHADES = (GREY, BLUE, GREEN, ORANGE)


def pictures(stage: EpisodeStage | TaskStage, record: dict[str, Any], folder: Path) -> None:
    """Write what there is to see: curves, and for sequences the target beside the output."""
    if isinstance(stage, EpisodeStage):
        _instances(stage, record, folder / "instances.png")
        _episode(stage, folder / "weights.png")
        return
    _wrong_bits(stage, record, folder / "curves.png")
    with torch.inference_mode():
        for length, task in stage.tests.items():
            batch = task(0).to(stage.device)
            steps = batch.mask[0]
            target = batch.target[0][steps].cpu()
            output = torch.sigmoid(stage.model(batch.x)[0][steps]).cpu()
            bits(target, output, folder / f"length_{length}.png")
            if length == min(stage.tests) and _has_rows(stage.model):
                trace = trace_weights(stage.model, batch.x[:1])
                title = f"{stage.name[:-1]} of length {length}"
                weights(trace, folder / "weights.png", title=title)


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


def weights(
    trace: WeightTrace, path: Path, *, title: str, marks: Sequence[str] = (), count: int = 64
) -> None:
    """Where the first sequence writes and reads, [T, N]; rows in the order of their first write.

    Args:
        trace: of a batch.
        path: of the PNG.
        title: above the picture.
        marks: one character for each step, along the time axis.
        count: rows shown at most, those with the largest write weights.
    """
    read, write = trace.read[0].cpu(), trace.write[0].cpu()
    strongest = write.amax(0).topk(min(count, write.shape[1])).indices
    order = strongest[write[:, strongest].argmax(0).argsort(stable=True)]
    figure = Figure(figsize=(max(6.0, len(read) / 6), 6.4), layout="constrained")
    for axis, (name, values) in zip(
        figure.subplots(2, 1, sharex=True), (("write", write), ("read", read)), strict=True
    ):
        shown = axis.imshow(values[:, order].T.numpy(), aspect="auto", cmap="viridis", vmin=0)
        axis.set_ylabel(f"rows, {name} weights")
        axis.set_yticks([])
        figure.colorbar(shown, ax=axis, pad=0.01)
    if marks:
        axis.set_xticks(range(len(marks)), marks, fontsize=7)
    axis.set_xlabel("step")
    figure.suptitle(title)
    save_figure(figure, path)


def _has_rows(model: nn.Module) -> bool:
    return not any(isinstance(part, LSTMCell) for part in model.modules())


def _episode(stage: EpisodeStage, path: Path) -> None:
    """Write and read weights over the first test episode, with the class of every step."""
    if not _has_rows(stage.model):
        return
    stage.test.load_state_dict({"epoch": 0, "position": 0})
    batch = stage.test.batch([0])
    stage.model.eval()
    trace = trace_weights(stage.model, *stage.inputs(batch))
    classes = [str(int(label)) for label in batch.label[0]]
    weights(trace, path, title="an episode of new classes; below, the class shown", marks=classes)


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
