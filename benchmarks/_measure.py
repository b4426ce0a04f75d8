"""Times several ways of doing the same, turn by turn, so that a noisy machine hits all alike."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._problem import Call

BLOCK = 2e-3  # seconds: short calls are repeated within a turn until they fill it
MOST_CALLS, FEWEST_ROUNDS, MOST_ROUNDS = 100, 5, 100
PASSES = ("forward", "backward", "both")


@dataclass(kw_only=True)
class Entry:
    """A way to time. Entries of one case are compared with each other."""

    case: str
    backend: str
    call: Call = field(init=False)
    moved: dict[str, int] = field(default_factory=dict)  # bytes of a pass
    first_call_s: float = 0.0  # until the first call was done, compilation included
    calls: int = 1  # in a turn
    seconds: dict[str, list[float]] = field(default_factory=dict)  # pass -> one number per round


def set_up(entry: Entry, make: Callable[[], Call], device: str) -> None:
    """Make the call of an entry, and call it once."""
    start = time.perf_counter()
    entry.call = make()
    run_once(entry.call, device)
    entry.first_call_s = time.perf_counter() - start


def measure(entries: list[Entry], device: str, seconds: float) -> None:
    """Fill in `seconds` of each entry: round after round, each entry once a round.

    Args:
        entries: the ways, set up.
        device: "cpu" or "cuda".
        seconds: to spend on all entries, as far as the fewest rounds allow.
    """
    turn = 0.0
    for entry in entries:
        for _ in range(2 if device == "cuda" else 0):  # CUDA graphs take more than one call
            run_once(entry.call, device)
        once = _turn(entry.call, 1, device)["both"]
        entry.calls = max(1, min(MOST_CALLS, int(BLOCK / once)))
        turn += entry.calls * once
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / turn)))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for entry in entries:
                for name, value in _turn(entry.call, entry.calls, device).items():
                    entry.seconds.setdefault(name, []).append(value)
    finally:
        gc.enable()


def run_once(call: Call, device: str) -> None:
    """Forward and backward, done when it returns."""
    results = call.forward()
    if call.backward:
        call.backward(results)
    if device == "cuda":
        torch.cuda.synchronize()


def _turn(call: Call, calls: int, device: str) -> dict[str, float]:
    """Mean seconds of each pass. One loop gives them all, on a fresh graph each time.

    On a GPU the times are those between events of the stream: of the kernels where they outlast
    their launches, of the launches where these are slower.
    """
    mark = _cuda_mark if device == "cuda" else time.perf_counter
    marks = []
    for _ in range(calls):
        start = mark()
        results = call.forward()
        middle = mark()
        if call.backward:
            call.backward(results)
        marks.append((start, middle, mark()))
        del results
    if device == "cuda":
        torch.cuda.synchronize()
        since = [[1e-3 * start.elapsed_time(x) for x in (m, end)] for start, m, end in marks]
    else:
        since = [[m - start, end - start] for start, m, end in marks]
    forward, both = (statistics.fmean(column) for column in zip(*since, strict=True))
    if not call.backward:
        return {"forward": forward, "both": forward}
    return {"forward": forward, "backward": both - forward, "both": both}


def _cuda_mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def peak_mib(call: Call, device: str) -> dict[str, float]:
    """Memory that a pass takes at its peak, on top of what was there before it: MiB."""
    gc.collect()
    try:
        before = _forget_peak(device)
        results = call.forward()
        peaks = {"forward": _peak(device) - before}
        if call.backward:
            between = _forget_peak(device)
            call.backward(results)
            peaks["backward"] = _peak(device) - between
            peaks["both"] = max(peaks["forward"], _peak(device) - before)
    except (OSError, AttributeError):  # not Linux
        return dict.fromkeys(PASSES, float("nan"))
    return {name: max(0.0, mib) for name, mib in peaks.items()}


def _forget_peak(device: str) -> float:
    """Memory in use, MiB; the peak starts from here."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed hides what a call takes
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _status_mib("VmHWM")


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(key + ":"))


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(2**26 if device == "cpu" else 2**28, device=device)
    target = torch.ones_like(source)
    copy = Call(forward=lambda: target.copy_(source))
    times = [_turn(copy, 1, device)["both"] for _ in range(8)]
    return 2 * source.nbytes / statistics.median(times[1:])


def to_rows(op: str, entries: list[Entry], device: str, copy: float) -> list[dict[str, Any]]:
    """One row per entry and pass, speed-ups against the entries of its case included.

    `vs_first` compares with eager of the first case, where entries span several (other dtypes).
    """
    rows = []
    for entry in entries:
        peaks = peak_mib(entry.call, device)
        for name in PASSES if entry.call.backward else PASSES[:1]:
            times = sorted(entry.seconds[name])
            median, moved = statistics.median(times), entry.moved.get(name)
            row = {
                "op": op,
                "run": entries[0].case,
                "case": entry.case,
                "pass": name,
                "backend": entry.backend,
                "median_ms": median * 1e3,
                "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))] * 1e3,
                "gb_per_s": moved and moved / median / 1e9,
                "percent_of_copy": moved and 100 * moved / median / copy,
                "peak_mib": peaks[name],
                "rounds": len(times),
                "calls": entry.calls,
                "first_call_s": entry.first_call_s,
            }
            rows.append(row)
    _add_speedups(rows)
    return sorted(rows, key=lambda row: (_index(rows, row, "case"), PASSES.index(row["pass"])))


def _index(rows: list[dict[str, Any]], row: dict[str, Any], key: str) -> int:
    return list(dict.fromkeys(r[key] for r in rows)).index(row[key])


def _add_speedups(rows: list[dict[str, Any]]) -> None:
    medians = {(r["case"], r["pass"], r["backend"]): r["median_ms"] for r in rows}
    first = rows[0]["case"]
    for row in rows:
        bases = {"eager": row["case"], "compile": row["case"], "first": first}
        for base, case in bases.items():
            backend = "eager" if base == "first" else base
            other = medians.get((case, row["pass"], backend))
            row[f"vs_{base}"] = other / row["median_ms"] if other else None
