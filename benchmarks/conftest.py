"""What the benchmark of every op shares: providers, measuring, one table and one JSON file.

`pytest benchmarks --benchmark-only`; `--results PATH` says where the JSON goes. A file
`bench_<op>.py` parametrises its cases and calls `measure`; the rest happens here.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PROVIDERS = ("eager", "compile", "cpu", "triton", "cuda")
SECONDS = 1.5  # of measuring, per provider and case
_HEADER = ("op", "case", "backend", "median ms", "p95 ms", "GB/s", "% copy", "peak MiB")
_rows: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results",
        default=".benchmarks/results.json",
        help="where the benchmark's JSON goes (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # the table below takes the place of pytest-benchmark's


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:  # torch.compile warns about torch's own code
            item.add_marker(pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where everything runs: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest, device: str) -> str:
    """Eager, torch.compile of it, and each backend of the module's `OP`; skips with the reason."""
    from stmeta.ops import availability

    torch.compiler.reset()
    name = request.param
    if name == "cpu" and device == "cuda":
        pytest.skip("the benchmark runs on the GPU")
    reason = availability(request.module.OP).get(name, "")
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(2**26 if device == "cpu" else 2**28, device=device)
    target = torch.ones_like(source)
    times = [_seconds(lambda: target.copy_(source), device) for _ in range(8)]
    return 2 * source.nbytes / statistics.median(times[1:])


Measure = Callable[..., None]


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    benchmark: Any,
    provider: str,
    device: str,
    copy_bandwidth: float,
) -> Measure:
    """Times `call()` and adds a row to the table.

    `moved` is the bytes that must cross memory whatever the implementation: inputs read once and
    outputs written once. GB/s and % of the copy bandwidth are of those bytes.
    """

    def run(call: Callable[[], Any], *, case: str, moved: int) -> None:
        if benchmark.disabled:  # --benchmark-disable: does it run at all?
            benchmark(call)
            return
        for _ in range(2):  # compiles, and warms up
            first = _seconds(call, device)
        rounds = max(5, min(200, int(SECONDS / first)))
        benchmark.pedantic(_synchronised(call, device), rounds=rounds, warmup_rounds=1)
        times = sorted(benchmark.stats.stats.data)
        median = statistics.median(times)
        row = {
            "op": request.module.OP,
            "case": case,
            "backend": provider,
            "median_ms": median * 1e3,
            "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))] * 1e3,
            "gb_per_s": moved / median / 1e9,
            "percent_of_copy": 100 * moved / median / copy_bandwidth,
            "peak_mib": _peak_mib(call, device),
            "rounds": rounds,
        }
        benchmark.extra_info.update(row)
        _rows.append(row)

    return run


def _synchronised(call: Callable[[], Any], device: str) -> Callable[[], None]:
    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _seconds(call: Callable[[], Any], device: str) -> float:
    run = _synchronised(call, device)
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak_mib(call: Callable[[], Any], device: str) -> float:
    """Memory that one call takes at its peak, its result included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed hides what a call takes
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        before = _status_kib("VmRSS")
        call()
        return max(0, _status_kib("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return float("nan")


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def _add_speedups() -> None:
    cases = list(dict.fromkeys((row["op"], row["case"]) for row in _rows))
    _rows.sort(key=lambda row: cases.index((row["op"], row["case"])))  # providers side by side
    for row in _rows:
        for base in ("eager", "compile"):
            same = [r for r in _rows if (r["op"], r["case"]) == (row["op"], row["case"])]
            medians = [r["median_ms"] for r in same if r["backend"] == base]
            row[f"vs_{base}"] = medians[0] / row["median_ms"] if medians else None


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*_HEADER, "vs eager", "vs compile", title="stmeta benchmarks")
    for column in table.columns[3:]:
        column.justify = "right"
    previous = None
    for row in _rows:
        if previous not in (None, (row["op"], row["case"])):
            table.add_section()
        previous = (row["op"], row["case"])
        speedups = (row["vs_eager"], row["vs_compile"])
        table.add_row(
            *(row["op"], row["case"], row["backend"]),
            *(f"{row['median_ms']:.3f}", f"{row['p95_ms']:.3f}", f"{row['gb_per_s']:.1f}"),
            *(f"{row['percent_of_copy']:.0f}", f"{row['peak_mib']:.0f}"),
            *("-" if s is None else f"{s:.2f}x" for s in speedups),
        )
    Console(width=150).print(table)


def _machine() -> dict[str, Any]:
    import stmeta

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    cpu = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "stmeta": stmeta.__version__,
        "commit": commit.stdout.strip() or None,
    }


def pytest_terminal_summary(config: pytest.Config) -> None:
    if not _rows:
        return
    _add_speedups()
    _print_table()
    path = Path(config.getoption("--results"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": _machine(), "rows": _rows}, indent=1) + "\n")
    print(f"saved {path}")
