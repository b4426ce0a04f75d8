"""Compiles CUDA C++ without a GPU, and reads what ptxas says about each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
TORCH_FLAGS = (
    f"-I{TORCH_INCLUDE}",
    f"-I{TORCH_INCLUDE / 'torch/csrc/api/include'}",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)


MOST_DECLARED = 8192  # memory::usable_shared leaves so much beside what a launch asks for
MOST_ALONE = 48 * 1024  # what every GPU gives a launch that asks for no more
# Kernels that are launched without any: `launch(kernel, grid, block, 0, ...)`.
ALONE = ("shifted_patch_embed::finish_kernel",)


class Kernel(NamedTuple):
    """One compiled kernel."""

    name: str  # as in C++, in the namespace stmeta: erase_add::forward_kernel<float>
    target: int  # 90: compute capability 9.0
    registers: int
    spilled_bytes: int
    declared_bytes: int  # of the shared memory that its own arrays take


def compile_launchers(ops: Iterable[str], folder: Path, *targets: int) -> list[Kernel]:
    """Compile csrc/cuda/<room>/<op>.cu: every kernel that the ops launch, for each target.

    All in one source, as most of an op's time goes into torch's headers; tests/test_older_torch.py
    compiles each alone. The host compiler checks the host code, but need not optimise and write it:
    nobody runs it.
    """
    flags = ("-c", "-Xcompiler=-fsyntax-only", f"-I{CSRC}", *TORCH_FLAGS)
    sources = [path for op in ops for path in CSRC.glob(f"cuda/*/{op}.cu")]
    source = folder / "launchers.cu"
    source.write_text("".join(f'#include "{path}"\n' for path in sources))
    return _compile(source, folder, targets, flags)


def compile_kernels(
    names: Iterable[str], headers: Iterable[str], folder: Path, target: int
) -> list[Kernel]:
    """Compile kernels of csrc/cuda/*/<header>.cuh alone: faster than launchers with all dtypes."""
    lines = [
        *(f'#include "{path}"' for header in headers for path in CSRC.glob(f"cuda/*/{header}.cuh")),
        *("using namespace stmeta;", "void* kernels[] = {"),
        *(f"    reinterpret_cast<void*>({name})," for name in names),
        "};",
    ]
    source = folder / "kernels.cu"
    source.write_text("\n".join(lines))
    return _compile(source, folder, (target,), ("-cubin", f"-I{CSRC}"))


def check_kernels(kernels: list[Kernel], names: Iterable[str], registers: int = 255) -> None:
    """All of `names` are there, for each target; nothing spills or has more registers.

    Nor do its own arrays take more shared memory than launchers leave for them.
    """
    for target in {kernel.target for kernel in kernels}:
        missing = set(names) - {kernel.name for kernel in kernels if kernel.target == target}
        assert not missing, f"not compiled for {target}: {missing}"
    wrong = [k for k in kernels if k.spilled_bytes or k.registers > registers]
    assert not wrong, f"spills, or more than {registers} registers: {wrong}"
    large = [
        kernel
        for kernel in kernels
        if kernel.declared_bytes > (MOST_ALONE if kernel.name.startswith(ALONE) else MOST_DECLARED)
    ]
    assert not large, f"declares more shared memory than a launch leaves: {large}"


def _compile(
    source: Path, folder: Path, targets: tuple[int, ...], flags: tuple[str, ...]
) -> list[Kernel]:
    """Fails with what nvcc wrote."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    command = [
        *("nvcc", "-O3", "-std=c++17", "-Xptxas=-v", *flags),
        *(f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets),
        *(str(source), "-o", str(folder / source.stem)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\n{report}"
    # Its names are mangled; c++filt comes with the linker, which no host compiler is without.
    plain = subprocess.run("c++filt", input=report, capture_output=True, text=True, check=True)
    before, *parts = plain.stdout.split("Compiling entry function ")
    assert "spill" not in before, before
    kernels = [_kernel(part) for part in parts]
    assert {kernel.target for kernel in kernels} == set(targets), report
    return kernels


def _kernel(report: str) -> Kernel:
    """From the kernel's part of the report, functions that it calls included."""
    found = re.match(r"'(?:void )?stmeta::([^(]+)\(.*' for 'sm_(\d+)'", report)
    assert found, report
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert spills, report
    spilled = sum(int(stores) + int(loads) for stores, loads in spills)
    declared = re.search(r"Used .*?(\d+) bytes smem", report)
    return Kernel(
        found[1], int(found[2]), int(registers), spilled, int(declared[1]) if declared else 0
    )
