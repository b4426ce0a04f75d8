"""What the tests of every op share: backends, instruction sets, memory layouts, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stmeta._extension import extension, extension_missing
from stmeta.ops import BACKENDS, availability
from stmeta.ops._core.register import INTERPRET


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiling for compute capability 9.0 finds what is wrong; others guard rare changes."""
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("target") in (80, 100):
            item.add_marker("slow")


class Backend(NamedTuple):
    name: str
    device: str


def _backend(op: str, name: str) -> Backend:
    """The backend, or a skip with the reason."""
    device = "cuda" if name == "cuda" or (name == "triton" and not INTERPRET) else "cpu"
    reason = availability(op)[name]
    if reason:
        pytest.skip(reason)
    return Backend(name, device)


@pytest.fixture(params=[name for name in BACKENDS if name != "eager"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each fused backend of the op that `OP` in the test module names; skips with the reason."""
    return _backend(request.module.OP, request.param)


@pytest.fixture
def cpu(request: pytest.FixtureRequest) -> Backend:
    """The compiled CPU kernels, or a skip with the reason."""
    return _backend(request.module.OP, "cpu")


def use_instruction_set(name: str) -> Iterator[str]:
    """One of the CPU kernels' for a while, or a skip with the reason: the body of a fixture."""
    if extension is None:
        pytest.skip(extension_missing)
    before = extension.cpu_capability()
    try:
        extension.set_cpu_capability(name)
    except ValueError as error:
        pytest.skip(str(error))
    yield name
    extension.set_cpu_capability(before)


@pytest.fixture(params=["plain", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest, cpu: Backend) -> Iterator[str]:
    """Each instruction set of the CPU kernels that this CPU has."""
    yield from use_instruction_set(request.param)


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_zeros([size + 3 for size in x.shape])
    view = wide[tuple(slice(1, 1 + size) for size in x.shape)]
    return view.copy_(x)


def _stepped(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "sliced": _sliced,
    "stepped": _stepped,
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """Lays a tensor out in memory in some way; "expanded" repeats its first row."""
    return LAYOUTS[request.param]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a new Python process; gives what it printed."""
    root = Path(__file__).resolve().parents[2]

    def run(code: str, *args: str, **environment: str) -> str:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
        result = subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
