"""Inputs that benchmarks share: videos, masks, memories. Sizes by letter, as in stmeta.ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._problem import Problem

MEAN, STD = (0.45, 0.4, 0.5), (0.2, 0.25, 0.3)
SMALL, LARGE = (16, 128, 40, 4), (64, 1024, 64, 4)  # B, N, M, H of a memory
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def names(usual: Iterable[str], full: Iterable[str] = ()) -> list[Any]:
    """Values for `parametrize`: the second lot runs with --full only."""
    return [*usual, *(pytest.param(name, marks=pytest.mark.full) for name in full)]


def video(device: str, batch: int, side: int = 64, layout: str = "thwc") -> Tensor:
    """uint8 [B, 3, 16, side, side]; "thwc" lies in memory as the loader delivers it."""
    shape = (batch, 3, 16, side, side)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return clips.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "thwc" else clips


def masking(device: str, batch: int, tokens: int, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids_keep, ids_masked (both ascending) and ids_restore."""
    order = torch.rand(batch, tokens, device=device).argsort(1)
    ids_keep, ids_masked = order[:, :keep].sort(1).values, order[:, keep:].sort(1).values
    return ids_keep, ids_masked, torch.cat([ids_keep, ids_masked], 1).argsort(1)


def leaf(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def weights(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of non-negative numbers that sum to one."""
    return torch.randn(shape, device=device).softmax(-1).to(dtype).requires_grad_()


def uniform(
    device: str, low: float, high: float, *shape: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.empty(shape, device=device).uniform_(low, high).to(dtype).requires_grad_()


Draw = Callable[..., dict[str, Tensor]]


def memory_names() -> list[Any]:
    """Cases of the ops on memories."""
    return names(["B64 N1024 M64 H4"], ["B16 N128 M40 H4", "B64 N1024 M64 H4, bf16"])


def memory_problem(name: str, eager: Any, fused: Any, draw: Draw, device: str) -> Problem:
    """A case of `memory_names`; `draw` takes device, B, N, M, H, dtype."""
    sizes = SMALL if name.startswith("B16") else LARGE
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    return Problem(eager=eager, fused=fused, arguments=draw(device, *sizes, dtype=dtype))
