"""Random numbers that mean something: weights sum to one, gates lie in [0, 1]."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def weights(generator: Generator, *shape: int) -> Tensor:
    """Rows of non-negative numbers that sum to one."""
    return normal(generator, *shape).softmax(-1)


def one_hot(generator: Generator, *shape: int) -> Tensor:
    """Rows with a one somewhere and zeros elsewhere."""
    places = torch.randint(shape[-1], shape[:-1], generator=generator)
    return torch.nn.functional.one_hot(places, shape[-1]).double()


def choice(generator: Generator, batch: int, count: int, keep: int) -> Tensor:
    """int64 [batch, keep], different numbers below `count` in each row."""
    rows = [torch.randperm(count, generator=generator)[:keep] for _ in range(batch)]
    return torch.stack(rows) if rows else torch.zeros(0, keep, dtype=torch.int64)
