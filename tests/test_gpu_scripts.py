"""The scripts for a GPU machine, tried on the CPU: each op runs, and what fails is reported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import _plot, _problem, conftest, gpu_quick
from benchmarks.video import bench_random_masking
from stmeta._errors import BackendUnavailableError
from stmeta._extension import extension
from stmeta.ops._core.dispatch import registered_ops
from tests import gpu_smoke
from tests.ops import _harness

ROOT = Path(__file__).resolve().parents[1]
NOT_THERE = "av", "nvidia.dali", "tyro", "hypothesis", "torchmetrics", "webdataset"

needs_extension = pytest.mark.skipif(extension is None, reason="stmeta._C is not built")


@needs_extension
def test_every_op_runs_where_there_is_little_else():
    """In a process that can import torch, numpy and pytest; benchmarks have a case of each."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_THERE}))
from benchmarks import gpu_quick
from benchmarks._problem import find
from tests.gpu_smoke import main
for op in gpu_quick.registered_ops():
    test = getattr(find(op), f"test_{{op}}")
    usual, full = (gpu_quick._cases(test, full) for full in (False, True))
    assert usual and set(usual) <= set(full), op
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ok = {line.split(",")[0] for line in done.stdout.splitlines() if ", cpu: ok" in line}
    assert ok == set(registered_ops())


@needs_extension
def test_smoke_reports_a_wrong_result(monkeypatch, capsys):
    """A result that is off by a thousandth, and an op that raises; the others run."""
    honest = _harness.run_backend

    def run_backend(inputs, backend):
        if inputs.op.name == "memory_read":
            raise RuntimeError("launch: invalid argument")
        factor = 1.001 if inputs.op.name == "erase_add" else 1.0
        return {name: x * factor for name, x in honest(inputs, backend).items()}

    monkeypatch.setattr(_harness, "run_backend", run_backend)
    ops = ("--op", "memory_read", "erase_add", "allocation")
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", "--device", "cpu", *ops])
    assert gpu_smoke.main() == 1
    said = capsys.readouterr().out
    assert "memory_read, cpu: FAILED: RuntimeError: launch: invalid argument" in said
    assert "erase_add, cpu: FAILED: AssertionError: " in said
    assert "allocation, cpu: ok" in said
    assert "1 ok, 2 failed: memory_read, cpu; erase_add, cpu" in said


def test_smoke_fails_where_nothing_ran(monkeypatch, capsys):
    monkeypatch.setattr(gpu_smoke, "availability", lambda op: {"cuda": "needs a CUDA device"})
    options = ("--device", "cuda", "--backend", "cuda", "--op", "allocation")
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", *options])
    assert gpu_smoke.main() == 1
    assert "left out: needs a CUDA device\n0 ok, 0 failed" in capsys.readouterr().out


def test_quick_times_and_keeps_what_worked(monkeypatch, capsys, tmp_path):
    """One case, and one that cannot be made."""

    @pytest.mark.parametrize("name", ["small"])
    def broken(name, device, compare):
        raise RuntimeError("there is no memory")

    monkeypatch.setattr(bench_random_masking, "test_random_masking", broken)
    monkeypatch.setattr(gpu_quick, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(gpu_quick, "TURNS", 3)
    monkeypatch.setattr(gpu_quick, "TURN_S", 1e-3)
    out = tmp_path / "quick.json"
    options = ("--op", "random_masking", "allocation", "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["gpu_quick.py", *options])
    assert gpu_quick.main() == 0
    assert "random_masking, small: FAILED: RuntimeError: there is no" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {row["op"] for row in rows} == {"allocation"}
    assert all(row["us"] > 0 for row in rows)


def test_benchmarks_record_fused_ops_as_they_record_eager(monkeypatch):
    """A small op alone would show Python's time, which eager's graph has not."""
    available = dict.fromkeys(("triton", "cuda"), "")
    monkeypatch.setattr(_problem, "availability", lambda op: available)
    problem = _problem.Problem(
        eager=torch.neg, fused=torch.neg, arguments={"input": torch.zeros(2)}
    )
    ways, left_out = problem.ways("any", "cuda")
    graphs = {name for name in ways if name.endswith(_problem.GRAPH)}
    assert graphs == {"cuda-graph", "cuda, cuda-graph", "triton, cuda-graph"} and not left_out
    assert graphs <= set(_plot.COLOURS)


def test_benchmarks_leave_out_what_a_backend_does_not_take():
    """And time the other ways of the case."""

    def refuse():
        raise BackendUnavailableError("lrua_scan: backend 'cuda' cannot run: recurrent is bf16")

    called = []
    ways = {"cuda": refuse, "eager": lambda: _problem.Call(forward=lambda: called.append(1))}
    benchmark = Mock(disabled=True)
    conftest.Compare("lrua_scan", benchmark, "cpu", 0.1).ways({"bf16": ways})
    assert called and benchmark.called
    kept = [x for x in conftest._left_out if x["case"] == "bf16" and x["backend"] == "cuda"]
    assert kept[0]["reason"].endswith("recurrent is bf16")
    conftest._left_out.clear()


FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *"import av"* | *"import xdist"*) exit 1 ;;  # not installed
  *"not triton"*) exit 1 ;;  # a test fails
esac
"""


@pytest.mark.parametrize("part", ["first", "second", "all"])
def test_script_goes_on_after_a_failure(part, tmp_path):
    """On a machine with a GPU, without av, xdist and the tools of the CUDA toolkit."""
    python, log = tmp_path / "python3", tmp_path / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "tests" / "gpu.sh"), part, str(python)],
        env={"PATH": "/usr/bin:/bin", "LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [line for line in log.read_text().splitlines() if "import torch" not in line]
    tests = [line for line in calls if "-m pytest" in line]
    assert len(tests) == 1 and "-n " not in tests[0] and "filterwarnings=default" in tests[0]
    assert "tests/ops/rules/test_ops_gpu.py" in tests[0] and "tests/data" not in tests[0]
    if part == "first":
        assert done.returncode == 1 and "failed: tests of CUDA C++" in done.stderr
        assert calls[-1] == "benchmarks/gpu_quick.py --seconds 90"
    else:
        assert done.returncode == 0 and "all passed" in done.stdout
    tool = {"second": "ncu"}.get(part, "compute-sanitizer")
    assert f"{tool} is not on PATH" in done.stdout


def test_files_with_gpu_tests_import_no_video_library():
    """Those of tests/ops, which run on a machine that has torch and little else."""
    found = [p for p in (ROOT / "tests" / "ops").rglob("*.py") if "mark.gpu" in p.read_text()]
    assert len(found) >= 6
    for path in found:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(NOT_THERE), path.name
