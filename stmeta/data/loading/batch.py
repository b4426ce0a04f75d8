"""What passes from the data side to a model: batches of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stmeta._errors import DataError

_Batch = TypeVar("_Batch", bound="TensorFields")


class TensorFields:
    """Moves every tensor of a dataclass at once."""

    def to(self: _Batch, device: torch.device | str, non_blocking: bool = False) -> _Batch:
        """Return the batch with its tensors on `device`.

        Args:
            device: where to.
            non_blocking: let a copy from pinned memory overlap with computation.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: _Batch) -> _Batch:
        """Return the batch in page-locked memory, from which copies to a GPU can overlap."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self: _Batch, move: Any) -> _Batch:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in fields}
        moved = {k: move(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class ClipBatch(TensorFields):
    """A batch of clips; B clips of T frames with C = 3 channels (RGB).

    Normalisation is left to the model (the fused patch op does it on the device).
    """

    video: Tensor
    """uint8 [B, T, C, H, W]. The memory behind it is [B, T, H, W, C]: channels are innermost."""
    label: Tensor
    """int64 [B], -1 = unlabelled."""
    frame_index: Tensor
    """int64 [B, T], positions in the video; the last one repeats where it was too short."""
    pts_seconds: Tensor
    """float64 [B, T], time of each frame after the video's first frame."""
    key: list[str]
    """Name of each sample, for people: two shards may use the same one."""
    sample: Tensor | None = None
    """int64 [B], position of each sample in the split's index, which identifies it."""

    def __len__(self) -> int:
        return len(self.key)


def require_finite(x: Tensor, keys: Sequence[Sequence[str]]) -> None:
    """Raise if an input of an episode is NaN or infinite, before anything is computed from it.

    Args:
        x: [B, L, ...], inputs of B episodes of L steps.
        keys: [B][L], their names.

    Raises:
        DataError: names every bad input, and the episode that it is in.
    """
    if bool(x.sum().isfinite()):  # one pass; a sum of finite values of this size stays finite
        return
    bad = (~x.flatten(2).isfinite().all(2)).nonzero().tolist()
    if bad:
        named = "; ".join(f"{keys[b][t]}, step {t} of the episode of {keys[b][0]}" for b, t in bad)
        raise DataError(
            f"inputs must be finite, got NaN or infinite values in {named}; remove or repair them"
        )
