"""Pictures and tables of a run: people would rather look than read."""

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

BLUE, ORANGE, GREEN, GREY = "#2a6fbb", "#e07b39", "#3a9a5b", "#8a8a8a"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure)
    figure.savefig(partial, format="png", dpi=130, bbox_inches="tight")
    os.replace(partial, path)


def curves(stages: dict[str, dict[str, Any]], path: Path) -> None:
    """Loss (top) and accuracy (bottom) of each stage, training and validation."""
    figure = Figure(figsize=(4.2 * len(stages), 5.6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False)
    for column, (name, record) in enumerate(stages.items()):
        history, evals = record["history"], record["evals"]
        top, bottom = axes[0, column], axes[1, column]
        top.set_title(name.replace("_", ", "), fontsize=11)
        _curve(top, history, evals, "loss")
        accuracy = next(
            (k for k in ("top1", "accuracy") if any(k in item for item in history)), None
        )
        if accuracy is None:
            bottom.set_axis_off()
            continue
        _curve(bottom, history, evals, accuracy)
        for k, shade in (("instance_1", GREY), ("instance_5", GREEN), ("instance_10", ORANGE)):
            if evals and k in evals[0]:
                values = [e[k] for e in evals]
                label = f"new classes, clip {k.split('_')[1]}"
                bottom.plot(
                    [e["step"] for e in evals], values, "o-", ms=3, color=shade, label=label
                )
        bottom.set_ylim(0, 1)
        bottom.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _curve(axis: Any, history: list[dict], evals: list[dict], key: str) -> None:
    shown = [item for item in history if key in item]  # a batch without labels has no accuracy
    steps = np.array([item["step"] for item in shown])
    values = np.array([item[key] for item in shown])
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


def instances(final: dict[str, float], ways: int, path: Path) -> None:
    """Accuracy at the k-th clip of a class within an episode."""
    values = [final[f"instance_{k}"] for k in range(1, len(final) + 1) if f"instance_{k}" in final]
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(values) + 1), values, "o-", color=BLUE)
    axis.axhline(1 / ways, color=GREY, ls="--", lw=1)
    axis.text(len(values), 1 / ways, "chance", ha="right", va="bottom", fontsize=8, color=GREY)
    axis.set(
        xlabel="clips of the class seen, this one included",
        ylabel="accuracy, new classes",
        ylim=(0, 1),
    )
    axis.set_xticks(range(1, len(values) + 1))
    axis.grid(alpha=0.25)
    save_figure(figure, path)


def summary(stages: dict[str, dict[str, Any]]) -> Table:
    """The table at the end of a run."""
    table = Table(title="stmeta", title_justify="left")
    for name, justify in (("stage", "left"), ("steps", "right"), ("time", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("clips/s", justify="right")
    table.add_column("data wait", justify="right")
    table.add_column("result on unseen clips")
    for name, record in stages.items():
        minutes, seconds = divmod(round(record["seconds"]), 60)
        table.add_row(
            name,
            f"{record['steps']:,}",
            f"{minutes}:{seconds:02d}",
            f"{record['clips_per_second']:,.0f}",
            f"{record['data_wait_share']:.1%}",
            describe(record["final"], record.get("chance")),
        )
    return table


def describe(final: dict[str, float], chance: float | None) -> str:
    """A stage's result in words."""
    tail = f" (chance {chance:.0%})" if chance else ""
    if "instance_1" in final:
        shown = [k for k in (1, 2, 5, 10) if f"instance_{k}" in final]
        parts = ", ".join(f"{k}: {final[f'instance_{k}']:.1%}" for k in shown)
        return f"new classes, accuracy at clip {parts}{tail}"
    if "top1" in final:
        interval = ""
        if "macro_f1_low" in final:
            interval = f" [{final['macro_f1_low']:.3f}, {final['macro_f1_high']:.3f}]"
        return f"top-1 {final['top1']:.1%}{tail}, macro F1 {final['macro_f1']:.3f}{interval}"
    return f"masked MSE {final['loss']:.4f}" if "loss" in final else ""
