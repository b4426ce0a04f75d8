"""masked_patch_loss: predictions against the normalised pixels of a uint8 video.

The baseline takes the pixels of the masked tokens only. Under "mask of all tokens" every token is
predicted and a mask says which count, as masked autoencoders are commonly written.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks._draw import MEAN, STD, leaf, masking, names, video
from benchmarks._problem import Problem, size
from stmeta.ops import masked_patch_loss, masked_patch_loss_ref

OP = "masked_patch_loss"
BATCH, TOKENS, KEEP, FEATURES = 32, 512, 51, 2 * 8 * 8 * 3
CASES = {"small_64, batch 32, 90 % masked": ("ids", torch.float32)}
FULL = {
    "small_64, batch 32, 90 % masked, bf16": ("ids", torch.bfloat16),
    "small_64, batch 32, 90 % masked, mask of all tokens": ("mask", torch.float32),
}


@pytest.mark.parametrize("name", names(CASES, FULL))
def test_masked_patch_loss(name, device, compare):
    chosen, dtype = (CASES | FULL)[name]
    clips = video(device, BATCH)
    ids = masking(device, BATCH, TOKENS, KEEP)[1]
    rows = {"ids": ids}
    if chosen == "mask":
        mask = torch.zeros(BATCH, TOKENS, dtype=torch.bool, device=device)
        rows = {"mask": mask.scatter_(1, ids, True)}
    count = ids.shape[1] if chosen == "ids" else TOKENS
    pred = leaf(device, BATCH, count, FEATURES, dtype=dtype)
    share = ids.shape[1] / TOKENS  # of the video and, with a mask, of `pred`
    needed = int(size([clips]) * share + size([pred]) * (ids.shape[1] / count))
    problem = Problem(
        eager=masked_patch_loss_ref,
        fused=masked_patch_loss,
        arguments={"pred": pred, "video": clips, "tubelet": 2, "patch": 8, **rows}
        | {"mean": MEAN, "std": STD, "norm_pix": True},
        reads=needed + size([*rows.values()]),
    )
    compare(name, problem)
