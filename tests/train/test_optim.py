"""Optimisers do what their papers say, and are chosen by the config alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stmeta.train.optim import AdamWConfig, OptimConfig, RMSPropConfig, SGDConfig

CONFIGS = [AdamWConfig(), SGDConfig(), RMSPropConfig()]


def test_rmsprop_is_that_of_graves():
    """Equations 38 to 41, number by number."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    config = RMSPropConfig(lr=0.01, decay=0.9, momentum=0.8, eps=1e-3)
    optimizer = config.build(model)
    weights = model.weight.detach().flatten().tolist()
    memory = [[0.0, 0.0, 0.0] for _ in weights]
    for step in range(5):
        x = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        grads = model.weight.grad.flatten().tolist()
        optimizer.step()
        for i, e in enumerate(grads):
            n, g, move = memory[i]
            n, g = 0.9 * n + 0.1 * e * e, 0.9 * g + 0.1 * e
            move = 0.8 * move - 0.01 * e / math.sqrt(n - g * g + 1e-3)
            memory[i], weights[i] = [n, g, move], weights[i] + move
    assert model.weight.flatten().tolist() == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_optimiser_learns_and_names_its_state(config: OptimConfig):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = config.build(model)
    assert all(group["scale"] == 1.0 for group in optimizer.param_groups)
    losses = []
    for _ in range(60):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert set(optimizer.state[model.weight]) == config.state_names()
