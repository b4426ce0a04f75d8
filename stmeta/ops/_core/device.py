"""Whether a GPU runs what was built: the targets of the CUDA kernels, and what Triton needs."""

from __future__ import annotations

import re

import torch

from stmeta._extension import extension
from stmeta.ops._core.torch_private import constant_when_compiled

TRITON_NEEDS = (8, 0)  # bf16, and asynchronous copies
_known: dict[tuple[str, int], str] = {}  # (backend, number of the GPU) -> reason


@constant_when_compiled
def why_not_on_gpu(backend: str, index: int | None) -> str:
    """Reason why a backend runs nothing on a GPU, or "".

    Args:
        backend: "cuda", "triton" or another.
        index: the number of the GPU; None = the current one.
    """
    if not torch.cuda.is_available():  # fake tensors, on a machine without one
        return ""
    number = torch.cuda.current_device() if index is None else index
    key = (backend, number)
    if key not in _known:
        _known[key] = _reason(backend, torch.cuda.get_device_capability(number))
    return _known[key]


def _reason(backend: str, capability: tuple[int, int]) -> str:
    has = "this GPU has compute capability {}.{}".format(*capability)
    if backend == "triton" and capability < TRITON_NEEDS:
        return f"{has}, and it needs {'.'.join(map(str, TRITON_NEEDS))}"
    if backend == "cuda" and extension is not None:
        built = extension.build_info()["cuda_archs"]
        if built and not runs_on(built, capability):
            wanted = "TORCH_CUDA_ARCH_LIST={}.{}".format(*capability)
            return f"stmeta._C was built for {built}, and {has}; rebuild it with {wanted}"
    return ""


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs code for other or the same targets.

    Machine code runs on later minor versions of its major version, PTX on anything later, and what
    is for one target alone (9.0a) there.

    Args:
        built: the targets, as in TORCH_CUDA_ARCH_LIST: "8.0;9.0+PTX". A name ("Hopper") counts as
            one that the GPU runs.
        capability: major and minor compute capability of the GPU.
    """
    for target in re.split(r"[;\s]+", built.strip()):
        found = re.fullmatch(r"(\d+)\.(\d+)(a?)(f?)(\+PTX)?", target)
        if found is None:
            return True
        own = (int(found[1]), int(found[2]))
        if found[3]:
            fits = own == capability
        else:
            fits = own <= capability and (bool(found[5]) or own[0] == capability[0])
        if fits:
            return True
    return False
