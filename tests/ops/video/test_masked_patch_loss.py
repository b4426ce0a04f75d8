"""Cases of masked_patch_loss."""

from __future__ import annotations

from typing import Any

import torch

from stmeta.ops.video.masked_patch_loss import masked_patch_loss, masked_patch_loss_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import choice, normal
from tests.ops.video._clips import MEAN, ORDERS, STD, clip

Shape = tuple[int, int, int, int, int]


def _make(
    g: torch.Generator,
    shape: Shape,
    tubelet: int,
    patch: int,
    *,
    masked: int | None = None,
    order: str = "thwc",
    floating: bool = False,
    **options: Any,
) -> Arguments:
    """With `masked`: `ids` of that many tokens. Without: a mask that is unequal row by row."""
    batch, channels, frames, height, width = shape
    tokens = frames // tubelet * (height // patch) * (width // patch)
    arguments: Arguments = {
        "video": clip(g, *shape, order=order, floating=floating),
        "pred": normal(
            g, batch, tokens if masked is None else masked, tubelet * patch**2 * channels
        ),
        "tubelet": tubelet,
        "patch": patch,
        **options,
    }
    if masked is not None:
        return arguments | {"ids": choice(g, batch, tokens, masked)}
    share = torch.rand(batch, 1, generator=g)
    return arguments | {"mask": torch.rand(batch, tokens, generator=g) < share}


def _scaled(channels: int) -> Arguments:
    return {"mean": MEAN[:channels], "std": STD[:channels]}


def _rows(g: torch.Generator, *values: bool) -> Arguments:
    """A mask that is the same for all tokens of a clip; one clip counts a single token."""
    arguments = _make(g, (len(values) + 1, 3, 2, 8, 8), 2, 4)
    mask = torch.tensor([*values, False])[:, None].repeat(1, 4)
    mask[-1, 2] = any(values)
    return arguments | {"mask": mask}


def _flat(g: torch.Generator, level: float) -> Arguments:
    """Bright patches with little or no contrast: the variance must come from two passes."""
    arguments = _make(g, (2, 3, 2, 8, 8), 2, 4, masked=3, floating=True)
    arguments["video"] = 0.5 + arguments["video"] * level
    return arguments


def _sized(
    batch: int,
    channels: int,
    grid: int,
    columns: int,
    tubelet: int,
    patch: int,
    masked: int,
    order: int,
    video: int,
    norm: int,
) -> Case:
    shape = (batch, channels, grid * tubelet, grid * patch, columns * patch)
    norm = norm and tubelet * patch**2 * channels > 2
    options: dict[str, Any] = {
        "masked": min(masked, grid * grid * columns) if masked < 9 else None,
        "order": ORDERS[order],
        "floating": video > 0,
        "norm_pix": norm > 0,
        **(_scaled(channels) if norm == 2 else {}),
    }
    fp32 = ("video",) if video == 1 else ()
    return Case(name="any", make=lambda g: _make(g, shape, tubelet, patch, **options), fp32=fp32)


OP = Op(
    name="masked_patch_loss",
    function=masked_patch_loss,
    reference=masked_patch_loss_ref,
    outputs=("loss",),
    constant=("video",),
    cases=(
        Case(
            name="usual",
            make=lambda g: _make(g, (3, 3, 4, 32, 32), 2, 8, masked=29, **_scaled(3)),
        ),
        Case(name="mask", make=lambda g: _make(g, (4, 3, 4, 32, 32), 2, 8)),
        Case(name="planar", make=lambda g: _make(g, (2, 3, 4, 16, 16), 2, 8, order="cthw")),
        Case(
            name="swapped",
            make=lambda g: _make(g, (2, 1, 3, 9, 6), 1, 3, masked=5, order="wc", **_scaled(1)),
        ),
        Case(
            name="float",
            make=lambda g: _make(g, (2, 5, 2, 8, 8), 2, 4, floating=True, masked=3),
            fp32=("video",),
        ),
        Case(name="half", make=lambda g: _make(g, (2, 3, 2, 8, 8), 1, 4, floating=True)),
        Case(
            name="plain_pixels",
            make=lambda g: _make(g, (2, 3, 2, 8, 8), 2, 4, norm_pix=False, **_scaled(3)),
        ),
        Case(name="one_feature", make=lambda g: _make(g, (2, 1, 2, 3, 3), 1, 1, norm_pix=False)),
        Case(name="whole_rows", make=lambda g: _rows(g, True, False)),
        Case(name="nothing_counts", make=lambda g: _rows(g, False, False)),
        Case(name="no_ids", make=lambda g: _make(g, (2, 3, 2, 8, 8), 2, 4, masked=0)),
        Case(name="empty", make=lambda g: _make(g, (0, 3, 2, 8, 8), 2, 4)),
        Case(name="dim", make=lambda g: _flat(g, 1e-3), fp32=("video",)),
        Case(name="black", make=lambda g: _flat(g, 0.0), fp32=("video",)),
    ),
    real=(
        Case(name="small_64", make=lambda g: _make(g, (32, 3, 16, 64, 64), 2, 8, masked=461)),
        Case(name="small_64_mask", make=lambda g: _make(g, (32, 3, 16, 64, 64), 2, 8)),
    ),
    tiny=Case(name="tiny", make=lambda g: _make(g, (2, 2, 2, 2, 4), 1, 2)),
    sizes={
        "batch": (0, 3),
        "channels": (1, 5),
        "grid": (1, 2),
        "columns": (1, 3),
        "tubelet": (1, 3),
        "patch": (1, 5),
        "masked": (0, 18),
        "order": (0, 2),
        "video": (0, 2),
        "norm": (0, 2),
    },
    sized=_sized,
)
