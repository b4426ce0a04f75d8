"""Plots and tables of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from stmeta.memory.trace import WeightTrace

BLUE, ORANGE, GREEN, GREY = "#2a6fbb", "#e07b39", "#3a9a5b", "#8a8a8a"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png", dpi=130, bbox_inches="tight")
    os.replace(partial, path)


def curves(tasks: dict[str, dict[str, Any]], path: Path) -> None:
    """Loss (top) and accuracy or errors (bottom) of each task, training and validation."""
    figure = Figure(figsize=(max(4.8, 4.2 * len(tasks)), 5.6), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, (name, record) in enumerate(tasks.items()):
        history, evals = record["history"], record["evals"]
        top, bottom = axes[0, column], axes[1, column]
        top.set_title(name.replace("_", ", "), fontsize=11)
        _curve(top, history, evals, "loss")
        figures = {key for item in history for key in item} - {"step", "loss", "lr"}
        if not figures:
            bottom.set_axis_off()
            continue
        metric = sorted(figures)[0]
        _curve(bottom, history, evals, metric)
        shares = all(0 <= item.get(metric, 0) <= 1 for item in history)
        for key, shade in zip(_numbered(evals, metric), (GREY, GREEN, ORANGE, BLUE), strict=False):
            values = [e[key] for e in evals]
            steps = [e["step"] for e in evals]
            bottom.plot(steps, values, "o-", ms=3, color=shade, label=key.replace("_", " "))
            shares = shares and max(values) <= 1
        bottom.set(**({"ylim": (0, 1)} if shares else {"yscale": "symlog"}))
        bottom.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _numbered(evals: list[dict], metric: str) -> list[str]:
    """Figures of a validation at several places: instance_5, wrong_bits_20."""
    every = evals[0] if evals else {}
    instances = [f"instance_{k}" for k in (1, 5, 10)]
    return [k for k in every if k in instances or k.rpartition("_")[0] == metric]


def _curve(axis: Any, history: list[dict], evals: list[dict], key: str) -> None:
    rows = [item for item in history if key in item]  # a batch without labels has no accuracy
    steps = np.array([item["step"] for item in rows])
    values = np.array([item[key] for item in rows])
    window = max(1, len(values) // 60)
    # Means over equal windows: the curve stays readable however many steps there are.
    usable = len(values) // window * window
    axis.plot(steps, values, color=BLUE, alpha=0.18, lw=0.6)
    axis.plot(
        steps[:usable].reshape(-1, window).mean(1),
        values[:usable].reshape(-1, window).mean(1),
        color=BLUE,
        label="training",
    )
    if evals and key in evals[0]:
        axis.plot(
            [e["step"] for e in evals],
            [e[key] for e in evals],
            "o-",
            ms=3,
            color=ORANGE,
            label="validation",
        )
    axis.set_xlabel("step")
    axis.set_ylabel({"top1": "top-1 accuracy"}.get(key, key))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)


def reconstruction(
    original: Tensor, masked: Tensor, rebuilt: Tensor, path: Path, *, frames: int = 8
) -> None:
    """Three rows of frames of one clip. Each clip: uint8 [C, T, H, W]."""
    total = original.shape[1]
    chosen = np.linspace(0, total - 1, min(frames, total)).round().astype(int)
    figure = Figure(figsize=(1.35 * len(chosen), 4.4), layout="constrained")
    axes = figure.subplots(3, len(chosen), squeeze=False)
    rows = {"original": original, "masked": masked, "reconstructed": rebuilt}
    for row, (name, clip) in enumerate(rows.items()):
        for column, frame in enumerate(chosen):
            axis = axes[row, column]
            axis.imshow(clip[:, frame].permute(1, 2, 0).cpu().numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"frame {frame}", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=9)
    save_figure(figure, path)


def confusion(label: Tensor, predicted: Tensor, classes: Sequence[str], path: Path) -> None:
    """Share of each true class (row) that was predicted as each class (column)."""
    count = len(classes)
    table = np.zeros((count, count))
    np.add.at(table, (label.cpu().numpy(), predicted.cpu().numpy()), 1)
    totals = table.sum(1, keepdims=True)
    share = table / np.maximum(totals, 1)
    figure = Figure(figsize=(2.5 + 0.42 * count, 2.0 + 0.42 * count), layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(table), strict=True):
        shade = "white" if share[i, j] > 0.5 else "black"
        axis.text(j, i, f"{share[i, j]:.0%}", ha="center", va="center", fontsize=6.5, color=shade)
    axis.set_xticks(range(count), classes, rotation=60, ha="right", fontsize=8)
    names = [f"{name} ({int(n)})" for name, n in zip(classes, totals[:, 0], strict=True)]
    axis.set_yticks(range(count), names, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true (clips)")
    save_figure(figure, path)


def instances(record: dict[str, Any], ways: int, batch_size: int, path: Path) -> None:
    """Accuracy on new classes: over training, and at the k-th sample of a class at its end."""
    evals, final = record["evals"], record["final"]
    values = [final[f"instance_{k}"] for k in range(1, len(final) + 1) if f"instance_{k}" in final]
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    over, end = figure.subplots(1, 2, sharey=True)
    for k, shade in ((1, GREY), (2, BLUE), (5, GREEN), (10, ORANGE)):
        if f"instance_{k}" in final:
            episodes = [item["step"] * batch_size for item in evals]
            accuracy = [item[f"instance_{k}"] for item in evals]
            over.plot(episodes, accuracy, "o-", ms=3, color=shade, label=f"sample {k}")
    over.set(xlabel="training episodes", ylabel="accuracy, new classes", ylim=(0, 1))
    over.legend(frameon=False, fontsize=8, loc="lower right")
    end.plot(range(1, len(values) + 1), values, "o-", color=BLUE)
    end.axhline(1 / ways, color=GREY, ls="--", lw=1)
    end.text(len(values), 1 / ways, "chance", ha="right", va="bottom", fontsize=8, color=GREY)
    end.set(xlabel="samples of the class so far, this one included")
    end.set_xticks(range(1, len(values) + 1))
    for axis in (over, end):
        axis.grid(alpha=0.25)
    save_figure(figure, path)


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
        image = axis.imshow(values[:, order].T.numpy(), aspect="auto", cmap="viridis", vmin=0)
        axis.set_ylabel(f"rows, {name} weights")
        axis.set_yticks([])
        figure.colorbar(image, ax=axis, pad=0.01)
    if marks:
        axis.set_xticks(range(len(marks)), marks, fontsize=7)
    axis.set_xlabel("step")
    figure.suptitle(title)
    save_figure(figure, path)


def summary(tasks: dict[str, dict[str, Any]]) -> Table:
    """The table at the end of a run."""
    table = Table(title="stmeta", title_justify="left")
    for name, justify in (("task", "left"), ("steps", "right"), ("time", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("per second", justify="right")
    table.add_column("data wait", justify="right")
    table.add_column("result on unseen data")
    for name, record in tasks.items():
        minutes, seconds = divmod(round(record["seconds"]), 60)
        table.add_row(
            name,
            f"{record['steps']:,}",
            f"{minutes}:{seconds:02d}",
            f"{record['clips_per_second']:,.0f}",
            f"{record['data_wait_share']:.1%}",
            record.get("result", ""),
        )
    return table
