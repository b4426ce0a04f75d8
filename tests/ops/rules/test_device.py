"""Which backends a GPU runs: those that were built for it. What torch says of it is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stmeta._errors import BackendUnavailableError
from stmeta.ops import BACKENDS, explain, resolve
from stmeta.ops._core import device as _device
from stmeta.ops._core import register as _register
from stmeta.ops._core.device import runs_on, why_not_on_gpu

OP = "patch_shift"


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("8.0;8.6;8.9;9.0+PTX", (8, 0), True),
        ("8.0;8.6;8.9;9.0+PTX", (8, 7), True),
        ("8.0;8.6;8.9;9.0+PTX", (12, 0), True),
        ("8.0;8.6;8.9;9.0+PTX", (7, 5), False),
        ("9.0", (9, 0), True),
        ("9.0", (8, 0), False),
        ("9.0", (10, 0), False),
        ("8.6", (8, 0), False),
        ("8.0 9.0", (9, 0), True),
        ("9.0a", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f", (10, 3), True),
        ("Hopper", (8, 0), True),
    ],
)
def test_targets_that_a_gpu_runs(built, capability, runs):
    assert runs_on(built, capability) is runs


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability, for an extension with kernels for some targets."""

    def make(capability: tuple[int, int], built: str) -> SimpleNamespace:
        info = {"compiler": "", "cuda": True, "cuda_archs": built}
        monkeypatch.setattr(_device, "extension", SimpleNamespace(build_info=lambda: info))
        monkeypatch.setattr(_device, "_known", {})
        cuda = SimpleNamespace(
            is_available=lambda: True,
            current_device=lambda: 0,
            get_device_capability=lambda index: capability,
        )
        monkeypatch.setattr(_device, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setitem(_register.missing, OP, dict.fromkeys(BACKENDS, ""))
        monkeypatch.setitem(_register.orders, OP, {"cuda": ("cuda", "triton", "eager")})
        return SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)

    return make


@pytest.mark.parametrize(
    ("capability", "built", "chosen"),
    [
        ((9, 0), "9.0", "cuda"),
        ((8, 0), "9.0", "triton"),  # an A100, and a build for an H100 alone
        ((7, 5), "8.0;9.0+PTX", "eager"),
        ((7, 5), "7.5", "cuda"),
    ],
)
def test_auto_takes_what_the_gpu_runs(gpu, capability, built, chosen):
    assert resolve(OP, gpu(capability, built)) == chosen


def test_named_backend_says_what_was_built(gpu):
    tensor = gpu((8, 0), "9.0")
    message = r"built for 9\.0, and this GPU has compute capability 8\.0; rebuild it with "
    with pytest.raises(BackendUnavailableError, match=message + r"TORCH_CUDA_ARCH_LIST=8\.0"):
        resolve(OP, tensor, "cuda")
    with pytest.raises(BackendUnavailableError, match=r"capability 7\.5, and it needs 8\.0"):
        resolve(OP, gpu((7, 5), "9.0"), "triton")


def test_table_says_it(gpu):
    gpu((8, 0), "9.0")
    assert f"{OP} on cuda: triton (cuda: stmeta._C was built for 9.0" in explain()


def test_is_a_constant_to_the_compiler(gpu):
    """torch.compile asks once, while it traces, and neither breaks the graph nor guards on it."""
    gpu((8, 0), "9.0")

    @torch.compile(fullgraph=True, backend="eager")
    def function(x):
        return x + 1 if why_not_on_gpu("cuda", 0) else x

    assert function(torch.zeros(2)).tolist() == [1, 1]
