"""Builds the compiled extension `stmeta._C`; everything else is in pyproject.toml.

The extension uses torch's stable ABI: one binary serves every torch from 2.10 on.

Environment: FORCE_CUDA=1 makes it an error to leave out the CUDA kernels (no GPU is needed),
TORCH_CUDA_ARCH_LIST chooses their targets, STMETA_SANITIZE=1 adds ASan and UBSan, and
STMETA_ISA=plain|avx2|avx512|bf16dot compiles the CPU kernels for one instruction set alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import find_namespace_packages, find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
ARCHS = "8.0;8.6;8.9;9.0+PTX"
ISAS = ("plain", "avx2", "avx512", "bf16dot")
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def note(line: str) -> None:
    """Say what is built; pip shows it with -v, and always when a build fails."""
    print(f"[stmeta] {line}", file=sys.stderr, flush=True)


def why_no_compiler() -> str:
    """Reason why C++ cannot be compiled here, or ""."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler!r} is not on PATH; install g++ or set CXX)"
    probe = [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(probe, input="#include <optional>\n", text=True, capture_output=True)
    return "" if result.returncode == 0 else f"{compiler!r} does not compile C++17"


def why_no_cuda(sources: list[str]) -> str:
    """Reason why the CUDA kernels are left out, or ""."""
    reason = ""
    if not sources:
        reason = "there is no csrc/cuda/**/*.cu"
    elif torch.version.cuda is None:
        reason = "torch is a CPU build"
    elif CUDA_HOME is None:
        reason = "there is no CUDA toolkit (nvcc is not on PATH; install it or set CUDA_HOME)"
    if reason and os.environ.get("FORCE_CUDA") == "1":
        raise SystemExit(f"[stmeta] FORCE_CUDA=1, but CUDA kernels cannot be built: {reason}")
    return reason


def one_isa() -> list[str]:
    """Flags for a build with one set of CPU kernels, in a quarter of the time: to edit and test."""
    name = os.environ.get("STMETA_ISA", "")
    if not name:
        return []
    if name not in ISAS:
        raise SystemExit(f"[stmeta] STMETA_ISA must be one of {ISAS}, got {name!r}")
    note(f"the CPU kernels are for {name} alone: not a build to install elsewhere")
    return [f"-DSTMETA_ONE_ISA={name}", f"-DSTMETA_ONE_{name.upper()}"]


def extensions() -> list[CppExtension]:
    """The extension, or nothing where there is no compiler."""
    reason = why_no_compiler()
    if reason:
        note(f"left out stmeta._C: {reason}. Ops run in eager PyTorch and Triton.")
        return []
    sources = [
        "csrc/module.cpp",
        *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/**/*.cpp")),
    ]
    cuda = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/**/*.cu"))
    left_out = why_no_cuda(cuda)
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-Wall", TARGET]
    flags += ["-Wno-psabi", "-Wno-maybe-uninitialized"]  # both false alarms of GCC on vectors
    flags += ["-g0", *one_isa()]  # Python may say -g, which takes a tenth of the time
    link = []
    if os.environ.get("STMETA_SANITIZE") == "1":
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags += [*checks, "-g", "-O2", "-fno-omit-frame-pointer"]
        link += checks
    if left_out:
        note(f"left out the CUDA kernels: {left_out}")
        archs, kind = "", CppExtension
    else:
        archs = os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHS
        kind, sources, flags = CUDAExtension, sources + cuda, [*flags, "-DUSE_CUDA"]
    flags.append(f'-DSTMETA_CUDA_ARCHS="{archs}"')
    note(f"building stmeta._C: {', '.join(sources)}" + (f" for CUDA {archs}" if archs else ""))
    nvcc = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-DUSE_CUDA", TARGET]
    return [
        kind(
            "stmeta._C",
            sources,
            # Before torch's own copy of pybind11, which refuses TORCH_TARGET_VERSION up to 2.11.
            include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
            extra_compile_args={"cxx": flags, "nvcc": nvcc},
            extra_link_args=link,
        )
    ]


setup(
    packages=[
        *find_packages(include=["stmeta", "stmeta.*"]),
        *(f"stmeta.kernels.{name}" for name in find_namespace_packages("kernels")),
    ],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
)
