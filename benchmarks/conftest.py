"""What the benchmark of every op shares: options, the fixture `compare`, table, JSON and picture.

`pytest benchmarks --benchmark-only` runs the usual shapes, in some minutes on two cores; `--full`
runs them all. Each way of doing a case (eager, torch.compile of it, each backend) takes its turn
in every round, so that ratios come from one run under one load. A file `bench_<op>.py` draws the
inputs of its cases and calls `compare`; the rest happens here and in the modules beside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmeta import _openmp

os.environ.update(_openmp.asleep())  # before torch is loaded, which the modules below do

import torch

from benchmarks._machine import default_results, describe
from benchmarks._measure import Entry, copy_bandwidth, measure, set_up, to_rows
from benchmarks._problem import GRAPH, Call, Problem
from benchmarks._table import print_table
from stmeta._errors import BackendUnavailableError

HERE = Path(__file__).parent
_rows: list[dict[str, Any]] = []
_left_out: list[dict[str, str]] = []
_copy: list[float] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stmeta benchmarks")
    group.addoption(
        "--results",
        default=None,
        help="where the JSON goes, and beside it the picture (default: benchmarks/results/<gpu>"
        ".json on a GPU, else .benchmarks/results.json)",
    )
    group.addoption("--full", action="store_true", help="all shapes and dtypes, not the usual ones")
    group.addoption(
        "--seconds",
        type=float,
        default=1.0,
        help="of measuring per case, all ways together, five rounds at least (default: 1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # the table below takes the place of pytest-benchmark's


def pytest_report_header() -> str:
    names = [name for name in _openmp.SETTINGS if name in os.environ]
    return "threads wait as " + (", ".join(f"{n}={os.environ[n]}" for n in names) or "by default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:  # torch.compile warns about torch's own code
        item.add_marker(pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"))
    if not config.getoption("--full"):
        extra = {item for item in ours if item.get_closest_marker("full")}
        config.hook.pytest_deselected(items=[item for item in items if item in extra])
        items[:] = [item for item in items if item not in extra]


@pytest.fixture(scope="session")
def device() -> str:
    """Where everything runs: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


Ways = dict[str, Callable[[], Call]]


class Compare:
    """Times the ways of one or several cases against each other, and keeps the rows."""

    def __init__(self, op: str, benchmark: Any, device: str, seconds: float) -> None:
        self.op, self.benchmark, self.device, self.seconds = op, benchmark, device, seconds

    def __call__(self, case: str, problem: Problem) -> None:
        """All ways of an op."""
        ways, left_out = problem.ways(self.op, self.device)
        for backend, reason in left_out.items():
            self._leave_out(backend, "", reason)
        self.ways({case: ways}, problem.moved)

    def ways(self, cases: dict[str, Ways], moved: dict[str, int] | None = None) -> None:
        """Any ways: case -> name -> how to set it up. Ratios go across the cases too.

        Args:
            cases: what to compare.
            moved: bytes that a pass must move, where that is known.
        """
        entries = []
        for case, ways in cases.items():
            for backend, make in ways.items():
                entry = Entry(case=case, backend=backend, moved=moved or {})
                try:
                    set_up(entry, make, self.device)
                except BackendUnavailableError as error:  # these inputs are not for this backend
                    self._leave_out(backend, case, str(error))
                    continue
                except RuntimeError as error:
                    if backend != GRAPH:  # some eager code cannot be recorded as a graph
                        raise
                    self._leave_out(backend, case, str(error).splitlines()[0])
                    continue
                entries.append(entry)
        if self.benchmark.disabled:  # --benchmark-disable: does it run at all?
            self.benchmark(lambda: None)
            return
        if not _copy:
            _copy.append(copy_bandwidth(self.device))
        arguments = (entries, self.device, self.seconds)
        self.benchmark.pedantic(measure, args=arguments, rounds=1)
        rows = to_rows(self.op, entries, self.device, _copy[0])
        self.benchmark.extra_info["rows"] = rows
        _rows.extend(rows)

    def _leave_out(self, backend: str, case: str, reason: str) -> None:
        entry = {"op": self.op, "case": case, "backend": backend, "reason": reason}
        if entry not in _left_out:
            _left_out.append(entry)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any, device: str) -> Compare:
    torch.compiler.reset()
    torch.manual_seed(0)
    return Compare(request.module.OP, benchmark, device, request.config.getoption("--seconds"))


def pytest_terminal_summary(config: pytest.Config) -> None:
    if not _rows:
        return
    from benchmarks._plot import plot

    print_table(_rows, _left_out)
    path = Path(config.getoption("--results") or default_results())
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": describe(_copy[0]), "rows": _rows, "left_out": _left_out}
    path.write_text(json.dumps(results, indent=1) + "\n")
    picture = path.with_suffix(".png")
    plot(results, picture)
    print(f"saved {path} and {picture}")
