"""patch_shift: bytes of video to normalised tokens, forward, and forward with backward.

The eager baseline is `patch_shift_ref`: one pass of `torch.stack` over views, and where tokens are
masked it makes only the kept ones. The case "eager makes all" is the usual way instead: make all
tokens, then gather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from stmeta.ops import patch_shift, patch_shift_ref

OP = "patch_shift"
SMALL = (32, 3, 16, 64, 64)
LARGE = (2, 3, 16, 224, 224)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call on uint8 video, LayerNorm and diagonal shifts included."""

    shape: tuple[int, ...] = SMALL  # [B, C, T, H, W]
    patch: int = 8
    layout: str = "thwc"  # memory order, what the loader delivers; or "cthw"
    masked: float = 0.0
    make_all: bool = False  # of the baselines
    dtype: torch.dtype = torch.float32
    backward: bool = False


CASES = {
    "small_64, batch 32": Case(),
    "small_64, batch 32, planar": Case(layout="cthw"),
    "small_64, batch 32, bf16": Case(dtype=torch.bfloat16),
    "small_64, batch 32, 90 % masked": Case(masked=0.9),
    "small_64, batch 32, 90 % masked, eager makes all": Case(masked=0.9, make_all=True),
    "base_224, batch 2": Case(shape=LARGE, patch=16),
    "small_64, batch 32, backward": Case(backward=True),
    "small_64, batch 32, 90 % masked, backward": Case(masked=0.9, backward=True),
}


@dataclass
class Inputs:
    """Arguments of one call, and the bytes that it must move."""

    video: torch.Tensor
    norm: list[torch.Tensor]
    ids_keep: torch.Tensor | None
    grad: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def moved(self, case: Case) -> int:
        share = 1 if self.ids_keep is None else self.grad.shape[1] / _tokens(case)
        forward = int(self.video.nbytes * share) + self.grad.nbytes
        return 2 * forward if case.backward else forward  # the backward reads the same again


def _tokens(case: Case) -> int:
    _, _, frames, height, width = case.shape
    return (frames // 2) * (height // case.patch) * (width // case.patch)


def _make(case: Case, device: str) -> Inputs:
    torch.manual_seed(0)
    batch, channels = case.shape[:2]
    video = torch.randint(0, 256, case.shape, dtype=torch.uint8, device=device)
    if case.layout == "thwc":
        video = video.movedim(1, -1).contiguous().movedim(-1, 1)
    features = 2 * case.patch**2 * 5 * channels
    norm = [torch.randn(features, device=device, requires_grad=case.backward) for _ in range(2)]
    kept = round(_tokens(case) * (1 - case.masked))
    noise = torch.rand(batch, _tokens(case), device=device)
    ids_keep = noise.argsort(dim=1)[:, :kept] if case.masked else None
    grad = torch.randn(batch, kept, features, device=device, dtype=case.dtype)
    numbers = {"mean": (0.45, 0.4, 0.5), "std": (0.2, 0.25, 0.3)}
    options = {"tubelet": 2, "patch": case.patch, "dtype": case.dtype, **numbers}
    return Inputs(video, norm, ids_keep, grad, options)


def _make_all_then_gather(video: torch.Tensor, *, ids_keep: torch.Tensor, **kwargs: Any):
    tokens = patch_shift_ref(video, **kwargs)
    return tokens.gather(1, ids_keep[:, :, None].expand(-1, -1, tokens.shape[2]))


def _call(case: Case, inputs: Inputs, provider: str) -> Callable[[], Any]:
    options = inputs.options
    if provider in ("eager", "compile"):
        function = _make_all_then_gather if case.make_all else patch_shift_ref
        function = torch.compile(function) if provider == "compile" else function
    else:
        function, options = patch_shift, {**options, "backend": provider}

    def forward() -> torch.Tensor:
        weight, bias = inputs.norm
        norm = {"norm_weight": weight, "norm_bias": bias}
        return function(inputs.video, ids_keep=inputs.ids_keep, **norm, **options)

    if not case.backward:
        return forward
    return lambda: torch.autograd.grad(forward(), inputs.norm, inputs.grad)


@pytest.mark.parametrize("name", CASES)
def test_patch_shift(name, provider, device, measure):
    case = CASES[name]
    inputs = _make(case, device)
    measure(_call(case, inputs, provider), case=name, moved=inputs.moved(case))
