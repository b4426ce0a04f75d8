"""Eager and fused, each recorded as CUDA graphs, for every op: `python benchmarks/gpu_quick.py`.

The cases are those of bench_<op>.py. A replay launches a recorded forward, or backward, at once: so
the times are those of the kernels, without the microseconds that Python and torch take for a small
op. Nothing is compiled, which would take minutes, and a way that fails does not stop the others. It
needs torch, numpy and pytest, and no network. Without a GPU it times plain calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # run as a file, the folder of the project is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import describe
from benchmarks._measure import copy_bandwidth
from benchmarks._problem import GRAPH, Call, Problem, find
from stmeta.ops._core.dispatch import registered_ops

TURNS, TURN_S = 7, 5e-3  # a case is replayed for so long, so often


def problems(ops: list[str], device: str, full: bool) -> Iterator[tuple[str, str, Problem]]:
    """Op, case and problem of each benchmark: its test function makes them, and calls `compare`."""
    for op in ops:
        module = find(op)
        test = getattr(module, f"test_{op}")
        for case in _cases(test, full):
            made: list[tuple[str, Problem]] = []
            torch.manual_seed(0)
            try:
                test(case, device, lambda name, problem, made=made: made.append((name, problem)))
            except Exception as error:
                print(f"{op}, {case}: FAILED: {_first_line(error)}", flush=True)
            for name, problem in made:
                yield op, name, problem


def _cases(test: Callable[..., None], full: bool) -> list[Any]:
    """Of `parametrize`; those with the mark "full" only if wanted."""
    marks = getattr(test, "pytestmark", [])
    (values,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    plain = [value for value in values if not hasattr(value, "values")]
    return plain + [value.values[0] for value in values if hasattr(value, "values") and full]


def measure(call: Call, device: str) -> dict[str, float]:
    """Microseconds of each pass: the median over turns of many replays."""
    results = call.forward()
    passes: dict[str, Callable[[], Any]] = {"forward": call.forward}
    if call.backward and device == "cuda":
        passes["backward"] = lambda: call.backward(results)  # pyright: ignore
    elif call.backward:
        passes["both"] = lambda: call.backward(call.forward())  # pyright: ignore
    return {name: _microseconds(function, device) for name, function in passes.items()}


def _microseconds(function: Callable[[], Any], device: str) -> float:
    once = max(_turn(function, 3, device), 1e-7)
    calls = max(1, min(2000, int(TURN_S / once)))
    return 1e6 * statistics.median(_turn(function, calls, device) for _ in range(TURNS))


def _turn(function: Callable[[], Any], calls: int, device: str) -> float:
    """Mean seconds of a call."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        function()
    last.record()
    torch.cuda.synchronize()
    return 1e-3 * first.elapsed_time(last) / calls


def ways_of(op: str, problem: Problem, device: str) -> dict[str, Callable[[], Call]]:
    """Eager and fused: as graphs on a GPU, plain elsewhere; the compiler's are left out."""
    ways, left_out = problem.ways(op, device)
    for name, reason in left_out.items():
        print(f"{op}: no {name}: {reason}", flush=True)
    if device == "cuda":
        return {name: way for name, way in ways.items() if name.endswith(GRAPH)}
    return {name: way for name, way in ways.items() if name in ("eager", "cpu")}


def rows_of(op: str, case: str, problem: Problem, device: str, copy: float) -> list[dict[str, Any]]:
    rows = []
    for way, make in ways_of(op, problem, device).items():
        try:
            times = measure(make(), device)
        except Exception as error:  # the others are timed all the same
            print(f"{op}, {case}, {way}: FAILED: {_first_line(error)}", flush=True)
            continue
        for name, value in times.items():
            moved = problem.moved[name]
            row = {"op": op, "case": case, "way": way, "pass": name, "us": value}
            row |= {"gb_per_s": moved / value / 1e3, "percent_of_copy": 1e8 * moved / value / copy}
            rows.append(row)
    for row in rows:
        same = [r["us"] for r in rows if r["pass"] == row["pass"] and r["way"] in ("eager", GRAPH)]
        row["vs_eager"] = same[0] / row["us"] if same else None
    return rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def show(row: dict[str, Any]) -> None:
    against = "" if row["vs_eager"] is None else f"{row['vs_eager']:8.2f}x"
    numbers = f"{row['us']:10.1f} us {row['percent_of_copy']:5.0f} % of copy {against}"
    print(f"{row['op']:20} {row['case'][:44]:44} {row['pass']:8} {row['way']:18} {numbers}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=registered_ops(), metavar="OP")
    parser.add_argument("--full", action="store_true", help="all shapes and dtypes")
    parser.add_argument("--seconds", type=float, default=90, help="start no case after so long")
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/gpu_quick.json"))
    options = parser.parse_args()
    start, rows = time.perf_counter(), []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copy = copy_bandwidth(device)
    late: list[str] = []
    for op, case, problem in problems(options.op or list(registered_ops()), device, options.full):
        if time.perf_counter() - start > options.seconds:
            late.append(f"{op}, {case}")
            continue
        new = rows_of(op, case, problem, device, copy)
        rows += new
        for row in new:
            show(row)
        sys.stdout.flush()
        results = {"machine": describe(copy), "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")  # what there is, if it is cut
    for name in late:
        print(f"{name}: left out, the time is up (--seconds)")
    print(
        f"{len(rows)} rows, copy {copy / 1e9:.0f} GB/s; saved {options.out}" if rows else "no rows"
    )
    return int(not rows)


if __name__ == "__main__":
    sys.exit(main())
