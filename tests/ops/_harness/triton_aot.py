"""Triton without a GPU: compile what a launcher launches for real targets, and run the interpreter.

The two do not mix in one process, so that the interpreter's tests lie in
tests/ops/<room>/interpreted_<op>.py, which pytest does not collect, and run in a child process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[3]
TYPES = {
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
}
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


class Kernel(NamedTuple):
    """One compiled kernel: `stack` is bytes of spilled registers a thread."""

    name: str
    target: int
    registers: int
    stack: int
    shared: int


def compile_launches(launch: Callable[[], object], target: int) -> list[Kernel]:
    """Compile for compute capability `target` (90 = 9.0) every kernel that `launch()` launches."""
    return [_compile(fn, args, kwargs, target) for fn, args, kwargs, _ in record_launches(launch)]


def record_launches(launch: Callable[[], object]) -> list[tuple[Any, tuple, dict, tuple]]:
    """Kernel, arguments, options and grid of each launch; a GPU must take the grid.

    The launcher runs as it is, best on tensors of device "meta"; its kernels do not run.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: this process interprets kernels")
    recorded = []

    def record(self, *args, grid, warmup, **kwargs):
        recorded.append((self, args, kwargs, grid))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.JITFunction, "run", record)
        launch()
    for fn, _, _, grid in recorded:
        lawful = [size <= most for size, most in zip(grid, (2**31 - 1, 65535, 65535), strict=False)]
        assert all(lawful), f"{fn.__name__}: a GPU refuses the grid {grid}"
    return recorded


def _compile(fn, args: tuple, kwargs: dict, target: int) -> Kernel:
    """As triton's own just-in-time compiler would: 1 and None are constants, 16 is noted."""
    options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
    values = dict(zip(fn.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate((name, values[name]) for name in fn.arg_names):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        elif fn.params[i].is_constexpr or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        whole = isinstance(value, int) and value % 16 == 0 and name not in constants
        if whole or isinstance(value, torch.Tensor):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn, signature, constants, attributes)
    device = triton.backends.compiler.GPUTarget("cuda", target, 32)
    compiled = triton.compile(source, target=device, options=options)
    usage = _resources(compiled.asm["cubin"])
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Kernel(fn.__name__, target, registers, stack, compiled.metadata.shared)


def _resources(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def run_interpreted(op: str) -> None:
    """Run tests/ops/*/interpreted_<op>.py in a child with TRITON_INTERPRET=1; fails if it does."""
    if VERSION < (3, 7):
        pytest.skip(f"triton {triton.__version__}: its interpreter fails on loops with numpy 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += map(str, (ROOT / "tests" / "ops").glob(f"*/interpreted_{op}.py"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
