"""The rule for results that are sums of many terms, or of a chain of steps: over several draws.

The largest error of one draw hangs on that draw, and on the order in which the library at hand adds
up for eager: its ratio to eager's runs from 1/5 to 10 for two kernels that are as good as each
other. What does not: the root mean square of the errors of a result, as a share of eager's, in the
geometric mean over draws. A kernel that adds n terms in one chain errs there by sqrt(n) where one
that adds in blocks of b errs by sqrt(b + n / b).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Results = Mapping[str, Tensor]
ONE_ROUNDING = 12**-0.5  # root mean square of the error of one rounding, in its unit


def check_rounding(draws: Iterable[tuple[Results, Results, Results]], factor: float) -> None:
    """Hold a backend to the rule above.

    Args:
        draws: of each, the results in float64, of eager and of the backend, by name.
        factor: how much larger than eager's and one rounding's the errors may be, in the mean over
            the draws. In a single draw it may be eight times that, where there are 64 numbers.
    """
    ratios = defaultdict(list)
    for exact, eager, ours in draws:
        assert ours.keys() == exact.keys() == eager.keys()
        for name, truth in exact.items():
            x = ours[name]
            assert x.shape == truth.shape and x.dtype == eager[name].dtype, name
            if not x.is_floating_point():
                assert torch.equal(x, eager[name]), name
            elif x.numel():
                ratios[name].append(_ratio(x, eager[name], truth))
                worst = 8 * factor if x.numel() >= 64 else math.inf
                assert ratios[name][-1] <= worst, f"{name}: {ratios[name][-1]} times eager's"
    assert ratios
    means = {name: math.exp(sum(map(math.log, x)) / len(x)) for name, x in ratios.items()}
    large = {name: round(mean, 2) for name, mean in means.items() if not mean <= factor}
    assert not large, f"errors in the mean, as shares of eager's: {large}, allowed {factor}"


def check_pooled(draws: Iterable[tuple[Results, Results, Results]], factor: float) -> None:
    """Hold the root mean square of the errors over all draws to `factor` times eager's.

    For results of few numbers, of which eager hits some exactly by luck.

    Args:
        draws: as of `check_rounding`.
        factor: how much larger than eager's and one rounding's the errors may be.
    """
    squares = defaultdict(list)
    for exact, eager, ours in draws:
        for name, truth in exact.items():
            if truth.is_floating_point() and truth.numel():
                x = ours[name]
                size = float(truth.square().mean().sqrt())
                rounding = ONE_ROUNDING * torch.finfo(x.dtype).eps * size
                allowed = math.hypot(_error(eager[name], truth), rounding)
                squares[name].append((_error(x, truth) ** 2, allowed**2))
    for name, pairs in squares.items():
        error, allowed = (math.sqrt(sum(x) / len(pairs)) for x in zip(*pairs, strict=True))
        assert error <= factor * allowed, f"{name}: {error / allowed} times eager's"


def _ratio(ours: Tensor, eager: Tensor, exact: Tensor) -> float:
    size = float(exact.square().mean().sqrt())
    rounding = ONE_ROUNDING * torch.finfo(ours.dtype).eps * size
    allowed = math.hypot(_error(eager, exact), rounding) + torch.finfo(torch.float64).tiny
    return max(_error(ours, exact) / allowed, 1e-3)


def _error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).square().mean().sqrt())
