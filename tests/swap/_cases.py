"""What the tests of all families share."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# How names of biases of keys end, see `assert_close`.
KEYS = ("k_proj.bias", "key.bias", ".k.bias")


def load(name: str) -> ModuleType:
    """Import a module of another package, or skip the test with the reason.

    Some packages import torchvision at their top and not in the file that is wanted: that file is
    then imported without the top.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            pytest.skip(f"needs {name}: no module {error.name}")
    top = importlib.util.find_spec(name.split(".")[0])
    assert top is not None and top.origin is not None
    folder = Path(top.origin).parent
    parents = name.split(".")[:-1]
    for key in [key for key in sys.modules if key.split(".")[0] == parents[0]]:
        del sys.modules[key]  # half imported
    for depth in range(len(parents)):
        package = ModuleType(".".join(parents[: depth + 1]))
        package.__path__ = [str(folder.joinpath(*parents[1 : depth + 1]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(name)


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter values that matter: fresh models have zero biases and tokens."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def run(model: nn.Module, call: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """Outputs of a call and all gradients of a scalar made of them."""
    model.zero_grad()
    result = call(model)
    if isinstance(result, Tensor):
        result = {"out": result}
    outputs = {k: v for k, v in dict(result).items() if isinstance(v, Tensor)}
    generator = torch.Generator().manual_seed(1)
    total: Any = 0
    for value in outputs.values():
        weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        total = total + (value.double() * weight).sum()
    total.backward()
    found = {k: v.detach().clone() for k, v in outputs.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad {name}"] = parameter.grad.clone()
    return found


def error(found: Tensor, exact: Tensor, least: float = 1e-30) -> float:
    """Largest difference, in units of the largest number, or of `least` where that is smaller."""
    found, exact = found.detach().double(), exact.detach().double()
    if exact.numel() == 0:
        return 0.0
    return float((found - exact).abs().max() / exact.abs().max().clamp_min(least))


def assert_close(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float = 1e-5) -> None:
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.dtype == exact[name].dtype and value.shape == exact[name].shape, name
        # A bias of keys moves all logits of a row alike: its gradient is 0, and rounding what is
        # found. It is held against the gradient of the keys' weights.
        keys = name.replace("bias", "weight") if name.endswith(KEYS) else ""
        least = float(exact[keys].abs().max()) if keys else 1e-30
        assert error(value, exact[name], least) <= bound, f"{name}: {error(value, exact[name])}"


def assert_same_error(model: nn.Module, twin: nn.Module, wrong: Tensor) -> None:
    """Both refuse an input, in the same words."""
    kinds = []
    for m in (model, twin):
        with pytest.raises(Exception) as caught:
            m(wrong)
        kinds.append((caught.type, str(caught.value)))
    assert kinds[0] == kinds[1]
