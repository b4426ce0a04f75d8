"""Cases of shifted_patch_embed."""

from __future__ import annotations

from typing import Any

import torch

from stmeta.ops import shift_offsets
from stmeta.ops.video.shifted_patch_embed import shifted_patch_embed, shifted_patch_embed_ref
from tests.ops._harness import Arguments, Case, Op
from tests.ops._harness.draw import choice, normal
from tests.ops.video._clips import MEAN, ORDERS, STD, clip

FP32 = ("norm_weight", "norm_bias", "bias", "pos")
FAR = ((0, 0, 0), (0, 9, -50), (-1, 0, 0), (1, 1, 2))
Shape = tuple[int, int, int, int, int]


def _make(
    g: torch.Generator,
    shape: Shape,
    tubelet: int,
    patch: int,
    width: int,
    *,
    shifts: Any = "diagonal",
    keep: int | None = None,
    norm: bool = True,
    bias: bool = True,
    pos: bool = True,
    order: str = "thwc",
    floating: bool = False,
    **options: Any,
) -> Arguments:
    batch, channels, frames, height, columns = shape
    tokens = frames // tubelet * (height // patch) * (columns // patch)
    offsets = shift_offsets(shifts, tubelet, patch) if isinstance(shifts, str) else shifts
    features = tubelet * patch**2 * len(offsets) * channels
    arguments: Arguments = {
        "video": clip(g, *shape, order=order, floating=floating),
        "weight": normal(g, width, features) / features**0.5,
        "tubelet": tubelet,
        "patch": patch,
        "shifts": offsets,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "dtype": None,
        **options,
    }
    if norm:
        arguments["norm_weight"] = 1 + 0.3 * normal(g, features)
        arguments["norm_bias"] = normal(g, features)
    if bias:
        arguments["bias"] = normal(g, width)
    if pos:
        arguments["pos"] = normal(g, tokens, width)
    if keep is not None:
        arguments["ids_keep"] = choice(g, batch, tokens, keep)
    return arguments


def _case(name: str, *sizes: Any, fp32: tuple[str, ...] = FP32, **options: Any) -> Case:
    """The video gets no gradient, which is what the op is made for."""
    return Case(
        name=name, make=lambda g: _make(g, *sizes, **options), fp32=fp32, constant=("video",)
    )


def _sized(
    batch: int,
    channels: int,
    grid: int,
    columns: int,
    tubelet: int,
    patch: int,
    width: int,
    keep: int,
    parts: int,
    order: int,
    video: int,
    shifts: int,
) -> Case:
    shape = (batch, channels, grid * tubelet, grid * patch, columns * patch)
    return _case(
        "any",
        shape,
        tubelet,
        patch,
        width,
        keep=min(keep, grid * grid * columns) if keep < 9 else None,
        norm=parts & 1 > 0,
        bias=parts & 2 > 0,
        pos=parts & 4 > 0,
        order=ORDERS[order],
        floating=video > 0,
        shifts=["none", "diagonal", "cardinal", FAR][shifts],
        fp32=(*FP32, *(["video"] if video == 1 else [])),
    )


SMALL = ((2, 3, 4, 8, 16), 2, 4, 12)
OP = Op(
    name="shifted_patch_embed",
    function=shifted_patch_embed,
    reference=shifted_patch_embed_ref,
    outputs=("tokens",),
    products=True,
    cases=(
        _case("usual", (2, 3, 4, 32, 32), 2, 8, 48, keep=5),
        _case("all_tokens", *SMALL),
        _case("planar", *SMALL, order="cthw", keep=3),
        _case("far", (1, 1, 3, 9, 6), 1, 3, 7, shifts=FAR, order="wc", floating=True),
        _case("float", *SMALL, floating=True, keep=3, fp32=(*FP32, "video")),
        _case("weight_fp32", *SMALL, keep=3, fp32=(*FP32, "weight")),
        _case("parameters_in_dtype", *SMALL, keep=3, fp32=()),
        _case("no_norm", *SMALL, norm=False, shifts="none"),
        _case("no_bias", *SMALL, bias=False, keep=3),
        _case("no_pos", *SMALL, pos=False, shifts="cardinal"),
        _case("weight_alone", *SMALL, norm=False, bias=False, pos=False, keep=3),
        _case("one_kept", *SMALL, keep=1),
        _case("none_kept", *SMALL, keep=0),
        _case("one", (1, 1, 1, 2, 2), 1, 2, 1),
        _case("empty", (0, 3, 2, 8, 8), 2, 4, 5),
        Case(
            name="video_with_gradient",
            make=lambda g: _make(g, *SMALL, floating=True, keep=3),
            fp32=(*FP32, "video"),
        ),
    ),
    real=(
        _case("small_64", (32, 3, 16, 64, 64), 2, 8, 192, keep=51),
        _case("small_64_all", (8, 3, 16, 64, 64), 2, 8, 192, shifts="none"),
        _case("base_224", (1, 3, 4, 224, 224), 2, 16, 768, keep=39),
    ),
    tiny=Case(
        name="tiny",
        make=lambda g: _make(g, (1, 1, 1, 4, 4), 1, 2, 2, keep=3, floating=True),
    ),
    sizes={
        "batch": (0, 3),
        "channels": (1, 5),
        "grid": (1, 2),
        "columns": (1, 3),
        "tubelet": (1, 2),
        "patch": (2, 5),
        "width": (1, 20),
        "keep": (0, 18),
        "parts": (0, 7),
        "order": (0, 2),
        "video": (0, 2),
        "shifts": (0, 3),
    },
    sized=_sized,
    shared=("pos", "weight", "bias", "norm_weight", "norm_bias"),
)
