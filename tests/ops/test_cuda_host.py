"""The executor of tests/cuda_host itself: what it is there for does show."""

from __future__ import annotations

import pytest
import torch

from tests.ops._cuda_host import HostProgram, HostProgramError, as_tensor

NUMBERS = list(range(64))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> HostProgram:
    """Reverses numbers: with no barrier (0), the right one (1), one that half of them miss (2)."""
    return HostProgram("reverse", "thread", tmp_path_factory.mktemp("cuda_host"))


def test_runs(program):
    (result,) = program.run(1, NUMBERS)
    assert as_tensor(result, torch.int64, 64).tolist() == NUMBERS[::-1]


def test_missing_barrier_is_found(program):
    with pytest.raises(HostProgramError, match="data race"):
        program.run(0, NUMBERS)


def test_wait_without_end_is_found(program):
    with pytest.raises(HostProgramError, match="some threads wait for others"):
        program.run(2, NUMBERS)
