"""Weights of one part of a model from the checkpoint of another, with nothing left unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class LoadReport(NamedTuple):
    """Which parameters were loaded. Names are those of the module that was loaded into."""

    matched: list[str]
    missing: list[str]
    """In the module, not in the checkpoint."""
    unexpected: list[str]
    """In the checkpoint under the prefix, not in the module."""
    mismatched: list[str]
    """In both with another shape."""

    @property
    def complete(self) -> bool:
        """Everything found a place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("missing", "unexpected", "mismatched"):
            items: list[str] = getattr(self, name)
            if items:
                more = ", ..." if len(items) > 8 else ""
                parts.append(f"{len(items)} {name}: {', '.join(items[:8])}{more}")
        return "; ".join(parts)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, .pt or .pth (opened with `weights_only=True`)."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["model"] if "model" in state else state


def load_prefixed(
    module: nn.Module, weights: Mapping[str, Tensor], prefix: str, *, strict: bool = True
) -> LoadReport:
    """Load the part of a state dict below `prefix` into a module.

    Args:
        module: gets the weights.
        weights: a state dict; names outside `prefix` are not looked at.
        prefix: for example "encoder."; "" takes all names.
        strict: raise instead of loading a part.

    Raises:
        ValueError: `strict`, and names or shapes differ; the message lists them.
    """
    own = module.state_dict()
    given = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    both = own.keys() & given.keys()
    mismatched = sorted(k for k in both if own[k].shape != given[k].shape)
    report = LoadReport(
        matched=sorted(both - set(mismatched)),
        missing=sorted(own.keys() - given.keys()),
        unexpected=sorted(given.keys() - own.keys()),
        mismatched=[f"{k} {list(given[k].shape)} for {list(own[k].shape)}" for k in mismatched],
    )
    if strict and not report.complete:
        raise ValueError(
            f"load_prefixed: the weights under {prefix!r} do not fit {type(module).__name__}: "
            f"{report}; use the config that the checkpoint was made with, or strict=False"
        )
    module.load_state_dict({k: given[k] for k in report.matched}, strict=False)
    return report
