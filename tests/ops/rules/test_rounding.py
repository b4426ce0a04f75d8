"""Sums in kernels keep their digits: errors over draws beside those of eager, see _rounding.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.ops._harness import (
    MEMORY_OPS,
    choose,
    load,
    make_inputs,
    run_backend,
    run_eager,
    run_exact,
)
from tests.ops._harness.rounding import check_rounding
from tests.ops.conftest import use_instruction_set

OPS = {name: load(name) for name in (*MEMORY_OPS, "locality_attention", "shifted_patch_embed")}
DRAWS = 6
FACTOR = 2.0  # lrua_step's usage, a sum of four numbers, has 1.9: three roundings against one


@pytest.fixture(params=["plain", "avx2", "avx512"])
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the CPU kernels."""
    yield from use_instruction_set(request.param)


# The library's product of a transposed matrix adds in blocks where that of a plain one does not.
@pytest.mark.parametrize("grad_layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_errors_over_draws(op, grad_layout, capability):
    backend = choose(op, "cpu").name
    case = op.cases[0]

    def draw(seed: int):
        def make(generator: torch.Generator):
            return case.make(generator.manual_seed(100 + seed))

        inputs = make_inputs(op, replace(case, make=make), grad_layout=grad_layout)
        return run_exact(inputs), run_eager(inputs), run_backend(inputs, backend)

    check_rounding((draw(seed) for seed in range(DRAWS)), FACTOR)
