"""Compiles CUDA C++ without a GPU, and reads what ptxas says about each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
TORCH_FLAGS = (
    f"-I{TORCH_INCLUDE}",
    f"-I{TORCH_INCLUDE / 'torch/csrc/api/include'}",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)


class Kernel(NamedTuple):
    """One compiled kernel; the name is mangled."""

    name: str
    registers: int
    spilled_bytes: int


def compile_cuda(source: Path, folder: Path, target: int, *flags: str) -> list[Kernel]:
    """Compile for compute capability `target` (90 = 9.0); fails with what nvcc wrote."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    command = [
        *("nvcc", "-O3", "-std=c++17", f"-arch=sm_{target}", "-Xptxas=-v", *flags),
        *(str(source), "-o", str(folder / f"{source.stem}_{target}")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\n{report}"
    names = re.findall(r"Compiling entry function '(\w+)'", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.findall(r"Used (\d+) registers", report)
    return [
        Kernel(name, int(used), int(stores) + int(loads))
        for name, used, (stores, loads) in zip(names, registers, spills, strict=True)
    ]
