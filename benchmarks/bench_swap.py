"""`stmeta.fuse` in models of other people: a training step before and after, in one run.

    python -m benchmarks.bench_swap --model videomae-base "videomae-base, parts" --json FILE

- eager: the model as its package defines it. compile: torch.compile of that.
- fused: the same Parameters after `stmeta.fuse`. fused, compile: torch.compile of that.

"backward" holds the AdamW step too, except with "parts", where the layers that fused ops leave
alone are replaced by stubs that cost nothing. Ways take turns; ratios are of medians of the same
rounds. `--clock cpu` counts the CPU time of one thread, where others use the machine too. Each
way's peak memory is that of a step in a process of its own, after one step, on top of what lay
there: activations, gradients and temporaries, no weights and no state of the optimizer.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stmeta
from benchmarks._draw import names
from benchmarks._machine import describe
from benchmarks._measure import Entry, copy_bandwidth, measure, peak_mib, run_once, set_up, to_rows
from benchmarks._problem import Call
from benchmarks._swap_models import DTYPES, SUBJECTS, Subject, build
from benchmarks._table import print_table

OP = "swap"
FEWEST_ROUNDS = 3
WAYS = ("eager", "compile", "fused", "fused, compile")
FULL = [f"{model}, {dtype}" for model in SUBJECTS for dtype in DTYPES]
USUAL = [case for case in FULL if "parts" in case]
ROOT = Path(__file__).parents[1]


def set_up_way(subject: Subject, dtype: str, way: str, optimizer: Any = None) -> Call:
    """A training step of a twin of the model, which shares its Parameters."""
    shared = {id(p): p for p in subject.model.parameters()}
    model: Any = copy.deepcopy(subject.model, shared)
    if "fused" in way:
        stmeta.fuse(model)
    if "compile" in way:
        model = torch.compile(model, dynamic=False)
    return _step(subject, model, DTYPES[dtype][1], optimizer)


def _step(subject: Subject, model: nn.Module, autocast: bool, optimizer: Any) -> Call:
    kind = next(model.parameters()).device.type

    def forward() -> Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=autocast):
            return subject.loss(model)

    def backward(loss: Tensor) -> None:
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return Call(forward=forward, backward=backward)


def prepare(case: str, device: str) -> tuple[Subject, str, Any]:
    """Model, dtype and optimizer of a case; tells if fused and eager disagree."""
    name, dtype = case.rsplit(", ", 1)
    subject = build(name, dtype, device)
    losses = []
    for way in ("eager", "fused"):
        torch.manual_seed(0)
        losses.append(set_up_way(subject, dtype, way).forward().detach().double())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5 if dtype == "fp32" else 5e-3, atol=0)
    rates = {"lr": 1e-5, "fused": True}
    optimizer = None if "parts" in name else torch.optim.AdamW(subject.model.parameters(), **rates)
    return subject, dtype, optimizer


# dynamo makes an instance of the stubs' autograd function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("case", names(USUAL, [case for case in FULL if case not in USUAL]))
def test_swap(case, device, compare):
    subject, dtype, optimizer = prepare(case, device)
    ways = {way: (lambda w=way: set_up_way(subject, dtype, w, optimizer)) for way in WAYS}
    compare.ways({case: ways})


def measure_cpu(entries: list[Entry], seconds: float) -> None:
    """`measure` with the CPU time of this process in the place of the time that goes by."""
    start, rounds = time.process_time(), 0
    while rounds < FEWEST_ROUNDS or time.process_time() - start < seconds:
        for entry in entries:
            begin = time.process_time()
            results = entry.call.forward()
            middle = time.process_time()
            assert entry.call.backward is not None
            entry.call.backward(results)
            end = time.process_time()
            times = {"forward": middle - begin, "backward": end - middle, "both": end - begin}
            for name, value in times.items():
                entry.seconds.setdefault(name, []).append(value)
        rounds += 1


def run(
    case: str, ways: list[str], device: str, seconds: float, copied: float, cpu: bool
) -> list[Any]:
    """Rows of one case, the peaks from fresh processes."""
    torch.compiler.reset()
    rows = _timed(case, ways, device, seconds, copied, cpu)
    peaks = {way: _peaks_elsewhere(case, way) for way in ways}
    for row in rows:
        row["peak_mib"] = peaks[row["backend"]][row["pass"]]
    return rows


def _timed(
    case: str, ways: list[str], device: str, seconds: float, copied: float, cpu: bool
) -> list[Any]:
    subject, dtype, optimizer = prepare(case, device)
    entries = [Entry(case=case, backend=way) for way in ways]
    for entry in entries:
        way = entry.backend
        set_up(entry, lambda w=way: set_up_way(subject, dtype, w, optimizer), device)
    if cpu:
        measure_cpu(entries, seconds)
    else:
        measure(entries, device, seconds)
    return to_rows(OP, entries, device, copied)


def _peaks_elsewhere(case: str, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_swap", "--peak", case, way]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _peaks_here(case: str, way: str, device: str) -> dict[str, float]:
    name, dtype = case.rsplit(", ", 1)
    call = set_up_way(build(name, dtype, device), dtype, way)
    run_once(call, device)
    return peak_mib(call, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_swap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=SUBJECTS, default=["videomae-base"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16 autocast"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=20, help="of measuring a case")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print a file's table again")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())["rows"]))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.peak:
        case, way = arguments.peak
        print(json.dumps(_peaks_here(case, way, device)))
        return
    cpu = arguments.clock == "cpu"
    if cpu:
        torch.set_num_threads(1)
    copied = copy_bandwidth(device)
    rows: list[Any] = []
    for case in [f"{model}, {dtype}" for model in arguments.model for dtype in arguments.dtype]:
        rows += run(case, arguments.way, device, arguments.seconds, copied, cpu)
        print_table(rows[-3 * len(arguments.way) :], [])
        if arguments.json:
            _save(arguments.json, rows, copied, arguments.clock)
    if {"eager", "fused"} <= set(arguments.way):
        print(markdown(rows))


def markdown(rows: list[Any]) -> str:
    """The table of docs/swap.md: a line for each run of a case, forward and backward together."""
    both = [row for row in rows if row["pass"] == "both"]
    ways = [way for way in WAYS if any(row["backend"] == way for row in both)]
    head = ["case", *(f"{way} ms" for way in ways), "fused vs eager", "vs compile"]
    head += ["eager peak MiB", "fused peak MiB"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for case in dict.fromkeys(row["run"] for row in both):
        of = {row["backend"]: row for row in both if row["run"] == case}
        cells = [case, *(f"{of[way]['median_ms']:.0f}" if way in of else "-" for way in ways)]
        ratios = (of["fused"][f"vs_{base}"] for base in ("eager", "compile"))
        cells += ["-" if ratio is None else f"{ratio:.2f}×" for ratio in ratios]
        cells += [f"{of[way]['peak_mib']:.0f}" for way in ("eager", "fused")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _save(path: Path, rows: list[Any], copied: float, clock: str) -> None:
    """Rows of other cases that the file has stay there."""
    cases = {row["case"] for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in old if row["case"] not in cases]
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {**describe(copied), "clock": clock}
    results = {"machine": machine, "rows": kept + rows, "left_out": []}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
