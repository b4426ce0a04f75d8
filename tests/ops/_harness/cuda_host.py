"""Builds and runs the programs of tests/cuda_host: CUDA device code on the CPU.

Each program reads its arguments from a file and writes its results to another; see case_io.h.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[3]
SCAN_WAYS: dict[str, dict[str, int]] = {  # what a block of a scan may use
    "shared_memory": {},
    "main_memory": {"whole": False},
    "clusters_of_4": {"cluster": 4},
    "clusters_of_8": {"whole": False, "cluster": 8},
}
ABOUT_FIBERS = "ASan doesn't fully support makecontext/swapcontext"  # fibers.h tells it of each
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
EXECUTOR = ("-DSTMETA_CUDA_HOST",)


class HostProgramError(AssertionError):
    """The program failed, or a sanitizer reported something."""


class HostProgram:
    """tests/cuda_host/<name>.cpp, built with -fsanitize=<sanitizer>.

    Args:
        name: of the program.
        sanitizer: of GCC.
        folder: where it is built.
        flags: of the compiler; those that put the executor in the place of the CUDA toolkit.
    """

    def __init__(
        self, name: str, sanitizer: str, folder: Path, flags: tuple[str, ...] = EXECUTOR
    ) -> None:
        if shutil.which("g++") is None:
            pytest.skip("g++ is not on PATH")
        self.path = folder / f"{name}_{sanitizer.replace(',', '_')}"
        source = ROOT / "tests" / "cuda_host" / f"{name}.cpp"
        compiler = [
            *("g++", "-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror"),
            *("-Wno-unknown-pragmas", "-pthread", *flags),
            *(f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"),
            *(f"-I{source.parent}", f"-I{ROOT / 'csrc'}", f"-isystem{TORCH_INCLUDE}"),
        ]
        if flags == EXECUTOR:
            headers = _precompiled(compiler, folder.parent / f"headers_{sanitizer}.h")
            compiler += ["-Winvalid-pch", "-include", str(headers)]
        done = _compile([*compiler, str(source), "-o", str(self.path)])
        if "cannot find -l" in done.stderr:
            pytest.skip(f"g++ has no library for -fsanitize={sanitizer}")
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"

    def run(self, *items, check_only: bool = False) -> list[bytes]:
        """Results of one run; fails with what the program wrote to stderr, if anything.

        Args:
            items: integers, floats, text, lists of integers or of floats, tensors, or None.
            check_only: run no kernel, but see whether a GPU would take each launch. The results
                mean nothing then.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            source.write_bytes(b"".join(_item(item) for item in items))
            command = [str(self.path), str(source), str(target)]
            environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
            if check_only:
                environment["CUDA_HOST_CHECK_ONLY"] = "1"
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=300
            )
            if "unexpected memory mapping" in done.stderr:
                pytest.skip("ThreadSanitizer of this g++ cannot run under this kernel's settings")
            said = [line for line in done.stderr.splitlines() if ABOUT_FIBERS not in line]
            if done.returncode or said:
                raise HostProgramError("\n".join([f"exit status {done.returncode}", *said]))
            return _split(target.read_bytes())


def _precompiled(compiler: list[str], headers: Path) -> Path:
    """A header with what all programs include, compiled once for a sanitizer."""
    with FileLock(f"{headers}.lock"):
        if not headers.exists():
            headers.write_text('#include "case_io.h"\n#include "common/cuda_base.cuh"\n')
            _compile([*compiler, "-x", "c++-header", str(headers), "-o", f"{headers}.gch"])
    return headers


def _compile(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def as_tensor(result: bytes, dtype: torch.dtype, shape) -> torch.Tensor:
    """A result as a tensor of the given shape."""
    if not result:
        return torch.empty(0, dtype=dtype).reshape(shape)
    return torch.frombuffer(bytearray(result), dtype=dtype).reshape(shape)


def storage(x: torch.Tensor) -> torch.Tensor:
    """All elements that the strides of `x` reach, in memory order, from its first one on."""
    if x.numel() == 0:
        return x.new_empty(0)
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,))


def _item(item) -> bytes:
    if item is None:
        raw = b""
    elif isinstance(item, str):
        raw = item.encode()
    elif isinstance(item, torch.Tensor):
        raw = item.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        values = list(item) if isinstance(item, (list, tuple, torch.Size)) else [item]
        kind = "d" if any(isinstance(v, float) for v in values) else "q"
        raw = struct.pack(f"={len(values)}{kind}", *values)
    return struct.pack("=q", len(raw)) + raw


def _split(data: bytes) -> list[bytes]:
    results = []
    while data:
        (size,) = struct.unpack_from("=q", data)
        results.append(data[8 : 8 + size])
        data = data[8 + size :]
    return results
