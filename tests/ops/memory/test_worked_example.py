"""The write of a lecture on Neural Turing Machines, worked out by hand: 5 rows of 5 numbers.

Wang, Deep Learning Lecture 11: Attention and Memory (CASIA 2018), "Neural Turing Machines: Erase"
to "Blurry Writes". The slides draw row i of the memory as column i.
"""

from __future__ import annotations

import pytest
import torch

from stmeta.ops import BACKENDS, erase_add, memory_read, ntm_step
from tests.ops._harness import choose, load

MEMORY = [
    [5, 7, 9, 2, 12],
    [11, 6, 3, 1, 2],
    [3, 7, 3, 10, 6],
    [4, 2, 5, 9, 9],
    [3, 5, 12, 8, 4],
]
WEIGHT = [0.1, 0.2, 0.5, 0.1, 0.1]
ERASE = [1.0, 0.7, 0.2, 0.5, 0.0]
ADD = [3, 4, -2, 0, 2]
ERASED = [
    [4.5, 5.6, 4.5, 1.8, 10.8],
    [10.23, 5.16, 1.95, 0.93, 1.86],
    [2.94, 6.72, 2.7, 9.8, 5.88],
    [3.8, 1.8, 3.75, 8.55, 8.55],
    [3, 5, 12, 8, 4],
]
WRITTEN = [
    [4.8, 6.2, 6, 2.1, 11.1],
    [10.63, 5.96, 3.95, 1.33, 2.26],
    [2.74, 6.32, 1.7, 9.6, 5.68],
    [3.8, 1.8, 3.75, 8.55, 8.55],
    [3.2, 5.4, 13, 8.2, 4.2],
]
READ = [6.04, 4.589, 3.916, 4.325, 9.14]  # not on the slides; 0.1 * 4.8 + 0.2 * 6.2 + 0.5 * 6 ...
GPU = pytest.mark.gpu


@pytest.fixture(
    params=[
        ("eager", torch.float64),
        *((name, torch.float32) for name in BACKENDS if name != "cuda"),
        pytest.param(("cuda", torch.float32), marks=GPU),
    ],
    ids=lambda param: f"{param[0]}-{str(param[1])[6:]}",
)
def backend(request):
    """Name of a backend, and how it wants its tensors; skips if it cannot run `ntm_step`."""
    name, dtype = request.param
    device = choose(load("ntm_step"), name).device
    return name, lambda rows: torch.tensor(rows, dtype=dtype, device=device)


def test_erase_and_add(backend):
    name, tensor = backend
    memory, erased, written = (tensor(x).T[None] for x in (MEMORY, ERASED, WRITTEN))
    weight, erase, add = (tensor(x)[None, None] for x in (WEIGHT, ERASE, ADD))
    only_erased = erase_add(memory, weight, erase, 0 * add, backend=name)
    torch.testing.assert_close(only_erased, erased)
    torch.testing.assert_close(erase_add(memory, weight, erase, add, backend=name), written)


def test_blurry_read(backend):
    """r = sum of w(i) M(i), on the memory after the write."""
    name, tensor = backend
    read = memory_read(tensor(WRITTEN).T[None], tensor(WEIGHT)[None, None], backend=name)
    torch.testing.assert_close(read, tensor([[READ]]))


def test_whole_step(backend):
    """A head that stays where it was (gate 0, no shift, no sharpening) writes the same."""
    name, tensor = backend
    weight, erase, add = (tensor(x)[None, None] for x in (WEIGHT, ERASE, ADD))
    step = ntm_step(
        tensor(MEMORY).T[None],
        previous=weight,
        key=add,
        strength=tensor([[1.0]]),
        gate=tensor([[0.0]]),
        shift=tensor([[[0.0, 1.0, 0.0]]]),
        sharpen=tensor([[1.0]]),
        erase=erase,
        add=add,
        read_first=False,
        backend=name,
    )
    torch.testing.assert_close(step.memory, tensor(WRITTEN).T[None])
    torch.testing.assert_close(step.weight, weight)
    torch.testing.assert_close(step.read, tensor([[READ]]))
