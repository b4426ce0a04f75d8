"""The sources against older versions of torch, one of which GPU machines have.

Their headers come with wheels of torch, of which pip fetches the smallest (80 MB) once into the
user's cache; `make test-older-torch` does so, and compiles every file. With
STMETA_OLDER_TORCH=install, torch 2.11 itself is installed there (several GB), the extension is
built against it, and every op runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pybind11
import pytest
from filelock import FileLock

from stmeta.ops._core.torch_private import PRIVATE

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stmeta-tests"
ASKED = os.environ.get("STMETA_OLDER_TORCH", "")
OLDEST, INSTALLED = "2.10.0", "2.11.0"
VERSIONS = (OLDEST, INSTALLED)
SOURCES = sorted([*CSRC.glob("*.cpp"), *CSRC.glob("cpu/**/*.cpp"), *CSRC.glob("cuda/**/*.cu")])

# Of a wheel: headers, and what says which private APIs there are.
WANTED = ("torch/include/", "torch/_C/", "torch/autograd/", "torch/utils/_python_dispatch.py")

# Functions of the stable ABI are declared for TORCH_TARGET_VERSION; macros are there or not.
MACROS = {
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_TORCH_CHECK",
    "TORCH_ABI_VERSION",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
}
OURS = {"TORCH_CUDA_ARCH_LIST"}  # in a message

slow = pytest.mark.slow
needs_headers = pytest.mark.skipif(
    not ASKED, reason="takes minutes, and 80 MB of headers: STMETA_OLDER_TORCH=1"
)
needs_install = pytest.mark.skipif(
    ASKED != "install", reason="takes an hour, and several GB: STMETA_OLDER_TORCH=install"
)


def test_macros_are_in_the_oldest_headers():
    """Of those that the list names; test_compiles holds the list to the headers themselves."""
    used = set()
    for path in CSRC.rglob("*.*"):
        used |= set(
            re.findall(r"\b(?:STABLE_|STD_|THO_|AOTI_)*TORCH_[A-Z_0-9]+\b", path.read_text())
        )
    assert used - OURS == MACROS


@contextmanager
def cached(name: str) -> Iterator[tuple[Path, bool]]:
    """A folder of the cache, and whether it is complete; one process at a time fills it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / name
    with FileLock(CACHE / f"{name}.lock"):
        done = folder / ".complete"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, done.exists()
        done.touch()


def pip(*arguments: str, python: str | Path = sys.executable) -> None:
    """Skips where there is no network, or pip knows no such wheel."""
    done = subprocess.run(
        [str(python), "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")


def headers(version: str) -> Path:
    """torch's include folder: that of the wheel for macOS, as all but that for CPUs is left out."""
    with cached(f"torch-{version}-sources") as (folder, complete):
        if not complete:
            with tempfile.TemporaryDirectory() as scratch:
                pip(
                    *("download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", scratch),
                    *("--only-binary=:all:", "--python-version=3.12"),
                    *("--platform=macosx_11_0_arm64", f"torch=={version}"),
                )
                (wheel,) = Path(scratch).glob("torch-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    wanted = [n for n in archive.namelist() if n.startswith(WANTED)]
                    archive.extractall(folder, wanted)
        return folder / "torch" / "include"


@slow
@needs_headers
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_compiles(source, version, tmp_path):
    """Every file, as setup.py has it compiled; nothing is optimised, as nothing runs."""
    include = headers(version)
    torch = (f"-I{include}", f"-I{include / 'torch/csrc/api/include'}")
    flags = ("-DTORCH_TARGET_VERSION=0x020a000000000000", '-DSTMETA_CUDA_ARCHS=""', f"-I{CSRC}")
    if source.suffix == ".cpp":
        python = sysconfig.get_paths()["include"]
        command = ["g++", "-std=c++17", "-fsyntax-only", "-Wno-psabi", *flags]
        command += [f"-I{pybind11.get_include()}", *torch, f"-I{python}"]
        command.append("-DTORCH_EXTENSION_NAME=_C")
    elif shutil.which("nvcc"):
        command = ["nvcc", "-c", "-std=c++17", "-Xcompiler=-fsyntax-only", "-Xcicc=-O0", *flags]
        command += [*torch, "-DUSE_CUDA", "-gencode=arch=compute_90,code=compute_90"]
        command += ["-o", str(tmp_path / "out")]
    else:  # the executor of tests/cuda_host stands in for the CUDA toolkit
        command = ["g++", "-std=c++20", "-fsyntax-only", "-x", "c++", *flags, *torch]
        command += ["-DSTMETA_CUDA_HOST", "-DUSE_CUDA", f"-I{ROOT / 'tests' / 'cuda_host'}"]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on PATH")
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


@slow
@needs_headers
@pytest.mark.parametrize("version", VERSIONS)
def test_has_the_private_apis_of_ops(version):
    """By torch's own type stubs and Python files; tests/ops/rules holds what is installed to it."""
    package, missing = headers(version).parent, []
    for name in PRIVATE:
        *path, last = name.split(".")
        places = [package.joinpath(*path).with_suffix(x) for x in (".py", ".pyi")]
        places.append(package.joinpath(*path, "__init__.pyi"))
        (place,) = [place for place in places if place.is_file()]
        if not re.search(rf"\b{last}\b", place.read_text()):
            missing.append(name)
    assert not missing, f"torch {version} lacks {', '.join(missing)}"


@slow
@needs_install
def test_extension_runs_on_torch_2_11(tmp_path):
    """Built there, with CUDA where nvcc is; every op runs, and registers what was built."""
    with cached(f"torch-{INSTALLED}") as (folder, complete):
        python = folder / "bin" / "python"
        if not complete:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip("install", "--quiet", f"torch=={INSTALLED}", python=python)
            needed = ("numpy", "pybind11", "ninja", "pytest", "setuptools>=77,<82", "wheel")
            pip("install", "--quiet", *needed, python=python)
    copy = tmp_path / "stmeta"
    left_out = shutil.ignore_patterns(".*", "_C*.so", "build", "runs", "results")
    shutil.copytree(ROOT, copy, ignore=left_out)
    environment = {"TORCH_CUDA_ARCH_LIST": "9.0", **os.environ}
    environment.pop("PYTHONPATH", None)
    has_all = "from stmeta.ops._core.torch_private import MISSING as m; assert m == (), m"
    for command in (
        ("setup.py", "--quiet", "build_ext", "--inplace"),
        ("-c", has_all),
        ("tests/gpu_smoke.py", "--device", "cpu"),
    ):
        done = subprocess.run(
            [str(python), *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " 0 failed" in done.stdout
