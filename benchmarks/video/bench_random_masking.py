"""random_masking: the usual baseline sorts noise twice (He et al. 2021). All draw their noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._draw import names
from benchmarks._problem import Problem
from stmeta.ops import random_masking

OP = "random_masking"
RATIO = 0.9
CASES = {"B32 N512": (32, 512)}
FULL = {"B8 N1568": (8, 1568), "B256 N512": (256, 512)}


def _double_argsort(batch: int, tokens: int, ratio: float, device: str) -> tuple[Tensor, ...]:
    noise = torch.rand(batch, tokens, device=device)
    keep = int(tokens * (1 - ratio))
    shuffled = noise.argsort(dim=1)
    ids_restore = shuffled.argsort(dim=1)
    ids_keep, ids_masked = shuffled[:, :keep], shuffled[:, keep:]
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=device)
    mask[:, :keep] = False
    return ids_keep, ids_restore, ids_masked, mask.gather(1, ids_restore)


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_random_masking(name, device, compare):
    batch, tokens = (CASES | FULL)[name]
    arguments = {"batch": batch, "tokens": tokens, "ratio": RATIO, "device": device}
    noise = 4 * batch * tokens
    compare(
        name,
        Problem(eager=_double_argsort, fused=random_masking, arguments=arguments, reads=noise),
    )
