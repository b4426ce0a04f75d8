"""Optimisers and the learning rate: a config builds the optimiser that it configures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig(ABC):
    """What every optimiser has: linear warm-up and a cosine to `min_lr`, decay, clipping."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the last step."""
    warmup: float = 0.1
    """Share of all steps spent warming up."""
    weight_decay: float = 0.05
    """Applied to matrices only: no decay on biases, norms, tokens, positions."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    layer_decay: float = 1.0
    """Learning rate of encoder layer i of L is multiplied by layer_decay ** (L + 1 - i)."""

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser of a model's parameters, by `groups`."""
        raise NotImplementedError

    def state_names(self) -> set[str]:
        """What the optimiser remembers of a parameter, to tell its checkpoints from others."""
        probe = nn.Linear(1, 1, bias=False)
        optimizer = self.build(probe)
        probe.weight.grad = torch.zeros_like(probe.weight)
        optimizer.step()
        return set(optimizer.state[probe.weight])

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then a half cosine down to `min_lr` at the last step."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        share = (step - warmup) / max(1, steps - warmup)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share))

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters by their share of the learning rate (`scale`) and their weight decay.

        A model with a method `layer_of(name) -> (layer, layers)` gets `layer_decay`; tokens and
        positions, which are tables and not matrices, are told by `no_decay() -> set of names`.
        Biases and norms, all 1-D, take no decay either.
        """
        layer_of = getattr(model, "layer_of", None)
        no_decay: set[str] = getattr(model, "no_decay", set)()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            layer, layers = layer_of(name) if layer_of and self.layer_decay < 1 else (0, 0)
            decay = 0.0 if parameter.ndim <= 1 or name in no_decay else self.weight_decay
            scale = self.layer_decay ** (layers - layer)
            groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (scale, decay), parameters in groups.items()
        ]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    betas: tuple[float, float] = (0.9, 0.95)

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Make the optimiser of a model's parameters."""
        return torch.optim.AdamW(self.groups(model), lr=self.lr, betas=self.betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

    momentum: float = 0.9
    nesterov: bool = False
    """Look ahead: the gradient where the momentum leads. Needs a momentum above 0."""

    def build(self, model: nn.Module) -> torch.optim.SGD:
        """Make the optimiser of a model's parameters."""
        groups = self.groups(model)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True, kw_only=True)
class RMSPropConfig(OptimConfig):
    """RMSProp as in Graves 2013, "Generating sequences with recurrent neural networks", eq. 38-41.

    The NTM of Graves et al. 2014 is trained so, with a learning rate of 1e-4 and gradients clipped
    to (-10, 10).
    """

    lr: float = 1e-4
    min_lr: float = 1e-4
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip_grad: float = 10.0
    decay: float = 0.95
    """Of the means of the gradient and of its square."""
    momentum: float = 0.9
    eps: float = 1e-4
    """Added to the variance of the gradient inside the root, where torch adds it outside."""

    def build(self, model: nn.Module) -> RMSProp:
        """Make the optimiser of a model's parameters."""
        groups = self.groups(model)
        return RMSProp(groups, self.lr, self.decay, momentum=self.momentum, eps=self.eps)


class RMSProp(torch.optim.Optimizer):
    """n = a n + (1 - a) e^2; g = a g + (1 - a) e; d = b d - lr e / sqrt(n - g^2 + eps); w += d.

    Args:
        params: as in every optimiser.
        lr: learning rate.
        decay: a.
        momentum: b.
        eps: under the root.
        weight_decay: taken off first, w -= lr * weight_decay * w, as in AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        decay: float = 0.95,
        *,
        momentum: float = 0.9,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Take a step down the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            for name in ("square_mean", "mean", "move"):
                state[name] = torch.zeros_like(parameter)
        square, mean, move = (state[name] for name in ("square_mean", "mean", "move"))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        square.mul_(group["decay"]).addcmul_(grad, grad, value=1 - group["decay"])
        mean.lerp_(grad, 1 - group["decay"])
        # Never below 0 but for rounding, which could make it so where a gradient hardly changes.
        variance = torch.addcmul(square, mean, mean, value=-1).clamp_(min=0).add_(group["eps"])
        move.mul_(group["momentum"]).addcdiv_(grad, variance.sqrt_(), value=-group["lr"])
        parameter.add_(move)
