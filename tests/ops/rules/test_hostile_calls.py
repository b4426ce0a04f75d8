"""Calls with any sizes, dtypes, strides and values: they give a result or raise, and never crash.

They run in processes of their own (_harness/hostile.py), because a fault in a kernel ends one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stmeta.ops import availability
from stmeta.ops.memory.erase_add import erase_add_ref
from stmeta.ops.memory.lrua_step import lrua_step_ref
from stmeta.ops.memory.memory_read import memory_read_ref
from tests.ops._harness.calls import valid_calls

ROOT = Path(__file__).resolve().parents[3]
BATCH = 500  # calls of a process

needs_kernels = pytest.mark.skipif(
    bool(availability("erase_add")["cpu"]), reason="needs the compiled kernels"
)


def run_hostile(*arguments: object, seconds: float = 300) -> list[tuple[str, str]]:
    """What tests.ops._harness.hostile called and how each call went; fails where it died."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.run(
            [sys.executable, "-m", "tests.ops._harness.hostile", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode()
        pytest.fail(f"no end after {seconds} s: {_last_call(output)}")
    assert process.returncode == 0, (
        f"ended with {process.returncode} in {_last_call(process.stdout)}\n{process.stderr[-4000:]}"
    )
    lines = process.stdout.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def _last_call(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("begin ")]
    return lines[-1] if lines else "nothing"


@needs_kernels
def test_any_size_of_any_argument():
    """Registered ops by themselves, without the checks in Python: sizes 0, 1 and huge."""
    went = run_hostile("sizes")
    called = {call.split()[1].rstrip(":") for call, _ in went}
    assert {"lrua_step", "lrua_scan_lean_backward", "patch_shift", "ntm_scan"} <= called
    assert any(how == "ok" for _, how in went) and any(how != "ok" for _, how in went)


@needs_kernels
@pytest.mark.parametrize(
    ("first", "count"), [(0, 60), pytest.param(1000, 3000, marks=pytest.mark.slow)]
)
def test_auto_does_what_eager_does(first, count):
    """Wherever eager gives a result, `auto` gives it too, gradients included."""
    went = []
    for begin in range(first, first + count, BATCH):
        went += run_hostile("random", begin, min(BATCH, first + count - begin))
    assert len(went) == count
    assert [f"{call} -> {how}" for call, how in went if how.startswith("differs")] == []
    assert any(how == "ok" for _, how in went)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("name", ["lrua_scan", "ntm_scan"])
def test_a_scan_names_the_tensor_that_is_missing(name, backend):
    """Eager would add no bias where a kernel cannot."""
    call = valid_calls()[name]
    with pytest.raises(ValueError, match=f"{name}: bias must be a tensor, got None"):
        call.function(**call.arguments | {"bias": None}, backend=backend)


@needs_kernels
@pytest.mark.parametrize("read_first", [True, False])
def test_lrua_step_without_heads(read_first):
    """Nothing is read nor written, and usage fades."""
    memory, usage = torch.randn(2, 5, 7), torch.rand(2, 5)
    none = [torch.zeros(2, 0, *rest) for rest in ((5,), (7,), (), (), (7,))]
    ours = torch.ops.stmeta.lrua_step(memory, usage, *none, 0.9, read_first, False, 1e-8)
    theirs = lrua_step_ref(memory, usage, *none, decay=0.9, read_first=read_first)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@needs_kernels
def test_memory_without_heads_or_rows():
    memory = torch.randn(2, 5, 7)
    none, rows = torch.zeros(2, 0, 5), torch.zeros(2, 0, 7)
    torch.testing.assert_close(
        torch.ops.stmeta.erase_add(memory, none, rows, rows),
        erase_add_ref(memory, none, rows, rows),
    )
    weight = torch.zeros(2, 3, 0)
    torch.testing.assert_close(
        torch.ops.stmeta.memory_read(memory[:, :0], weight), memory_read_ref(memory[:, :0], weight)
    )
