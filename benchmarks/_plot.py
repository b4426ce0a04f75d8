"""The benchmark's results as a picture: how much faster than eager, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = {
    "compile": "#9aa5b1",
    "compile, one graph": "#b8c0c8",
    "reduce-overhead": "#6b7785",
    "cuda-graph": "#c9b458",
    "cpu": "#1f6f8b",
    "triton": "#3f9c6f",
    "triton, cuda-graph": "#7fc4a1",
    "cuda": "#1f6f8b",
    "cuda, cuda-graph": "#5fa9c2",
    "fused": "#1f6f8b",
}
NAMES = {"cpu": "CPU C++", "cuda": "CUDA C++", "triton": "Triton", "compile": "torch.compile"}
NAMES |= {"cuda, cuda-graph": "CUDA C++, graph", "triton, cuda-graph": "Triton, graph"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def plot(results: dict[str, Any], path: Path) -> None:
    """One group of bars per case: forward with backward, or forward where there is no other.

    Args:
        results: what the JSON holds.
        path: of the PNG.
    """
    groups = _groups(results["rows"])
    bars = sum(len(of) for of in groups.values())
    height = 0.2 * bars + 0.24 * len(groups) + 1.2
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots()
    _draw(axes, groups)
    machine = results["machine"]
    name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    axes.set_title(f"Speed-up over eager PyTorch, {name}, torch {machine['torch']}", fontsize=11)
    figure.savefig(path, dpi=110)


def _groups(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Label of a case -> backend -> its row of the last pass."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["backend"] != "eager":
            groups.setdefault(f"{row['op']}\n{row['case']}", {})[row["backend"]] = row
    return groups


def _draw(axes: Axes, groups: dict[str, dict[str, dict[str, Any]]]) -> None:
    place, places, labels = 0.0, [], []
    legend: dict[str, Any] = {}
    for label, of in groups.items():
        places.append(place + (len(of) - 1) / 2)
        labels.append(label)
        for backend, row in of.items():
            ratio = row["vs_eager"]
            # Widths count from 1: what is slower than eager points to the left.
            bar = axes.barh(place, ratio - 1, left=1, height=0.9, color=COLOURS[backend])
            legend.setdefault(NAMES.get(backend, backend), bar)
            side = 1 if ratio >= 1 else -1
            axes.annotate(
                f"{ratio:.2g}×" if ratio < 100 else f"{ratio:.0f}×",
                (ratio, place),
                xytext=(4 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=7,
            )
            place += 1
        place += 1.2
    axes.set_xscale("log")
    axes.set_xlim(
        min(0.5, 0.7 * min(_ratios(groups))),
        max(2.0, 1.6 * max(_ratios(groups))),
    )
    axes.set_ylim(place - 1, -1)
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_xticks([tick for tick in TICKS if axes.get_xlim()[0] < tick < axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel("times faster than eager (log scale); forward and backward where there is one")
    axes.legend(legend.values(), legend, loc="lower right", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _ratios(groups: dict[str, dict[str, dict[str, Any]]]) -> list[float]:
    return [row["vs_eager"] for of in groups.values() for row in of.values()]
