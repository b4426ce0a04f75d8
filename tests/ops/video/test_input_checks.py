"""Videos with swapped axes or in other units than mean and std: never in silence."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from stmeta.nn import LocalitySelfAttention, SeparablePositions, ShiftedPatchEmbed, TubeletEmbed
from stmeta.nn.spt import ShiftedPatchTokenization
from stmeta.ops import masked_patch_loss, patch_shift, shifted_patch_embed
from stmeta.ops.video import _input_checks

SIZE = {"tubelet": 2, "patch": 8}
ONE = {"tubelet": 1, "patch": 8}
HINT = "did you swap axes 1 and 2? video.transpose(1, 2) makes [B, C, T, H, W]"
USUAL = {"mean": (0.45, 0.4, 0.5), "std": (0.2, 0.25, 0.3)}
OF_BYTES = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}


@pytest.fixture(autouse=True)
def _first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_input_checks, "_warned", set())


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda b: patch_shift(zeros(2, 16, 3, 32, 32), **SIZE, backend=b),
            "patch_shift: [T, H, W] must be positive multiples of [2, 8, 8], got [3, 32, 32], "
            "C = 16; " + HINT,
        ),
        (
            lambda b: patch_shift(zeros(2, 16, 32, 32, 3), **SIZE, backend=b),
            "are the channels last? video.permute(0, 4, 1, 2, 3) makes [B, C, T, H, W]",
        ),
        (
            lambda b: patch_shift(zeros(2, 3, 16, 33, 32), **SIZE, backend=b),
            "got [16, 33, 32], C = 3; crop or resize the clip",
        ),
        (lambda b: patch_shift(zeros(2, 16, 3, 32, 32), **ONE, **USUAL, backend=b), HINT),
        (
            lambda b: patch_shift(
                zeros(2, 16, 3, 8, 8),
                **ONE,
                norm_weight=torch.ones(960),
                norm_bias=torch.ones(960),
                backend=b,
            ),
            HINT,
        ),
        (
            lambda b: shifted_patch_embed(
                zeros(2, 16, 3, 8, 8), torch.ones(5, 960), **ONE, backend=b
            ),
            HINT,
        ),
        (
            lambda b: masked_patch_loss(
                torch.zeros(2, 3, 192),
                zeros(2, 16, 3, 8, 8),
                mask=torch.ones(2, 3, dtype=torch.bool),
                **ONE,
                backend=b,
            ),
            HINT,
        ),
        (
            lambda b: patch_shift(zeros(2, 3, 2, 8, 8), **SIZE, **OF_BYTES, backend=b),
            "patch_shift: a uint8 video is divided by 255 before mean and std",
        ),
    ],
)
def test_errors(call, message, backend):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(backend)


def once(call, message: str) -> None:
    """A warning at the first call and none at the next."""
    with pytest.warns(UserWarning, match=re.escape(message)):
        first = call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(call(), first)


def test_warning_of_axes_that_nothing_tells():
    video = zeros(1, 16, 3, 8, 8)
    message = "got [1, 16, 3, 8, 8], which has 16 channels and 3 frames; if it is [B, T, C, H, W]"
    once(lambda: patch_shift(video, **ONE), message)


@pytest.mark.parametrize("op", ["patch_shift", "masked_patch_loss"])
def test_warning_of_other_units(op):
    g = torch.Generator().manual_seed(0)
    video = 255 * torch.rand(2, 3, 2, 16, 16, generator=g)

    def call(video: torch.Tensor, numbers: dict) -> torch.Tensor:
        if op == "patch_shift":
            return patch_shift(video, **SIZE, **numbers)
        pred = torch.zeros(2, 4, 384)
        mask = torch.ones(2, 4, dtype=torch.bool)
        return masked_patch_loss(pred, video, mask=mask, **SIZE, **numbers)

    once(lambda: call(video, USUAL), f"{op}: a float video is taken as it is, so mean and std must")
    _input_checks._warned.clear()
    once(lambda: call(video / 255, OF_BYTES), "divide mean and std by 255")


def test_no_warning_of_what_is_right():
    g = torch.Generator().manual_seed(0)
    video = torch.rand(2, 3, 2, 16, 16, generator=g)
    patch_shift(video, **SIZE, **USUAL)
    patch_shift(255 * video, **SIZE, **OF_BYTES)
    patch_shift((255 * video).to(torch.uint8), **SIZE, **USUAL)
    patch_shift(255 * video, **SIZE)
    patch_shift(torch.zeros_like(video), **SIZE, **OF_BYTES)  # a black frame
    patch_shift(video.new_zeros(1, 16, 4, 8, 8)[:, :1], **SIZE)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            ShiftedPatchTokenization(8, tubelet=1, patch=8),
            (2, 16, 3, 16, 16),
            "ShiftedPatchTokenization: video must be [B, C, T, H, W] = [B, 3, T, H, W], got "
            "[2, 16, 3, 16, 16]; are its channels axis 2? use video.transpose(1, 2)",
        ),
        (
            ShiftedPatchTokenization(8, tubelet=1, patch=8),
            (2, 16, 16, 16, 3),
            "are its channels axis 4? use video.movedim(-1, 1)",
        ),
        (
            ShiftedPatchTokenization(8, tubelet=1, patch=8),
            (3, 4, 16, 16),
            "one clip is video[None]",
        ),
        (
            TubeletEmbed(16, 8, 4, 2, 3, 8),
            (2, 3, 4, 24, 16),
            "TubeletEmbed: video must be [B, C, T, H, W] = [B, 3, 4, 16, 16], got "
            "[2, 3, 4, 24, 16]; change the clip, or make the layer for this size",
        ),
        # As many tokens as the layer has positions for, in another grid.
        (ShiftedPatchEmbed(16, 8, 4, 2, 3, 8), (2, 3, 4, 8, 32), "= [B, 3, 4, 16, 16], got"),
        (ShiftedPatchEmbed(16, 8, 4, 2, 3, 8), (2, 3, 2, 16, 32), "= [B, 3, 4, 16, 16], got"),
    ],
)
def test_layers_know_their_size(layer, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(zeros(*shape))


def test_other_layers():
    with pytest.raises(ValueError, match=r"LocalitySelfAttention: x must be \[B, N, dim\] with"):
        LocalitySelfAttention(8, 2, 4)(torch.zeros(5, 8))
    positions = SeparablePositions((2, 2, 2), 8)
    with pytest.raises(ValueError, match=r"ids_keep must be \[B, K\] = \[2, 3\] to match tokens"):
        positions(torch.zeros(2, 3, 8), torch.zeros(1, 3, dtype=torch.int64))
