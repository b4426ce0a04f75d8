from __future__ import annotations

import dataclasses

import pytest
import torch

from stmeta.data.episodes.loader import EpisodeBatch
from stmeta.data.loading.batch import ClipBatch


def clips() -> ClipBatch:
    memory = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
    return ClipBatch(
        video=memory.permute(0, 1, 4, 2, 3),
        label=torch.tensor([1, -1]),
        frame_index=torch.zeros(2, 4, dtype=torch.int64),
        pts_seconds=torch.zeros(2, 4, dtype=torch.float64),
        key=["a", "b"],
    )


def test_moves_every_tensor_and_keeps_the_rest():
    batch = clips()
    moved = batch.to("meta")
    assert len(moved) == 2 and moved.key == ["a", "b"]
    for field in ("video", "label", "frame_index", "pts_seconds"):
        before, after = getattr(batch, field), getattr(moved, field)
        assert after.device.type == "meta"
        assert (after.dtype, after.shape, after.stride()) == (
            before.dtype,
            before.shape,
            before.stride(),
        )


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        clips().label = torch.zeros(2)


def test_episodes_move_what_they_have():
    numbers = torch.zeros(1, 3, dtype=torch.int64)
    tensors = (numbers.float(), numbers.float(), numbers, numbers > 0, numbers, numbers)
    moved = EpisodeBatch(*tensors, [["a"] * 3]).to("meta")
    assert moved.x.device.type == moved.class_id.device.type == "meta" and len(moved) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pins_memory():
    assert clips().pin_memory().video.is_pinned()
