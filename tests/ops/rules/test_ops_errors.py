"""Every error of the fused ops' public functions: which rule, what was received."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from stmeta.ops import random_masking
from tests.ops._harness import load, make_inputs
from tests.ops._harness.calls import valid_calls

VALID = valid_calls()


def _ones(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(shape, **kwargs)


META = _ones(2, 7, device="meta")
ERRORS = [
    # op, arguments that are not those of its case "odd" (or "usual"), message
    ("erase_add", {"memory": _ones(7, 7)}, "memory must be [B, N, M], got [7, 7]"),
    (
        "erase_add",
        {"weight": _ones(2, 5, 3)},
        "weight must be [B, W, N] = [2, W, 7] to match memory [2, 7, 7], got [2, 5, 3]",
    ),
    (
        "erase_add",
        {"weight": _ones(2, 7, 3)},
        "got [2, 7, 3]; did you swap the last two axes?",
    ),
    ("erase_add", {"add": _ones(2, 4, 7)}, "add must be [B, W, M] = [2, 3, 7]"),
    ("erase_add", {"memory": _ones(2, 7, 7).int()}, "memory must be fp32, bf16, fp16 or fp64, got"),
    ("erase_add", {"erase": _ones(2, 3, 7, device="meta")}, "erase must be on memory's device cpu"),
    ("memory_read", {"weight": _ones(3, 3, 7)}, "weight must be [B, H, N] = [2, H, 7]"),
    ("content_addressing", {"key": _ones(2, 3, 5)}, "key must be [B, H, M] = [2, H, 7]"),
    ("content_addressing", {"strength": _ones(2, 3, 1)}, "strength must be [B, H] = [2, 3]"),
    ("location_addressing", {"shift": _ones(3, 4, 2)}, "an odd number S of taps, at most N = 128"),
    ("location_addressing", {"shift": _ones(3, 4, 129)}, "at most N = 128, got 129"),
    ("location_addressing", {"gate": _ones(3, 1)}, "gate must be [B, H] = [3, 4]"),
    ("ntm_step", {"reads": 4}, "must be in [1, H] = [1, 3], got 4 and 1"),
    ("ntm_step", {"reads": 0}, "must be in [1, H] = [1, 3], got 0 and 1"),
    ("ntm_step", {"erase": _ones(2, 4, 7), "add": _ones(2, 4, 7)}, "got 2 and 4"),
    ("ntm_step", {"shift": _ones(2, 3, 4)}, "ntm_step: shift must have an odd number S"),
    ("ntm_step", {"previous": _ones(2, 2, 7)}, "key must be [B, H, M] = [2, 2, 7]"),
    ("lrua_step", {"usage": _ones(2, 8)}, "usage must be [B, N] = [2, 7] to match memory"),
    (
        "lrua_step",
        {
            name: _ones(2, 9, *rest)
            for name, rest in {
                "previous": [7],
                "key": [7],
                "add": [7],
                "strength": [],
                "gate": [],
            }.items()
        },
        "at least as many rows N as heads R = 9, got 7",
    ),
    ("allocation", {"usage": _ones(2, 7, 1)}, "usage must be [B, N], got [2, 7, 1]"),
    ("allocation", {"usage": _ones(2, 7).int()}, "usage must be fp32, bf16, fp16 or fp64, got"),
    ("temporal_link", {"link": _ones(2, 3, 7, 8)}, "link must be [B, W, N, N], got [2, 3, 7, 8]"),
    ("temporal_link", {"link": _ones(2, 7, 7)}, "link must be [B, W, N, N], got [2, 7, 7]"),
    ("temporal_link", {"precedence": _ones(2, 2, 7)}, "precedence must be [B, W, N] = [2, 3, 7]"),
    ("temporal_link", {"write_weight": _ones(2, 3, 6)}, "write_weight must be [B, W, N] = [2, 3"),
    (
        "temporal_link",
        {"write_weight": _ones(2, 3, 7, device="meta")},
        "write_weight must be on link's device cpu",
    ),
    ("gather_tokens", {"x": _ones(2, 7)}, "x must be [B, N, D], got [2, 7]"),
    ("gather_tokens", {"x": _ones(2, 7, 7).long()}, "x must be fp32, bf16, fp16 or fp64"),
    ("gather_tokens", {"pos": _ones(6, 7)}, "pos must be [N, D] = [7, 7]"),
    ("gather_tokens", {"ids_keep": _ones(2, 3).int()}, "must be int64, got torch.int32"),
    ("gather_tokens", {"ids_keep": 7 * _ones(2, 3).long()}, "[0, 7), got values from 7 to 7"),
    ("gather_tokens", {"ids_keep": -_ones(2, 3).long()}, "[0, 7), got values from -1 to -1"),
    ("gather_tokens", {"ids_keep": META.long()}, "must be on x's device cpu, got meta"),
    ("gather_tokens", {"ids_restore": _ones(2, 7)}, "ids_restore must be int64, got torch.float32"),
    ("gather_tokens", {"ids_restore": _ones(2, 6).long()}, "ids_restore must be [B, N] = [2, 7]"),
    ("restore_tokens", {"mask_token": _ones(6)}, "mask_token must have D = 7 numbers to match"),
    ("restore_tokens", {"ids_restore": _ones(3, 7).long()}, "must be [B, N] = [2, N]"),
    ("restore_tokens", {"ids_restore": _ones(2, 7).int()}, "ids_restore must be int64"),
    ("restore_tokens", {"ids_restore": 7 * _ones(2, 7).long()}, "must have values in [0, 7)"),
    ("restore_tokens", {"pos": _ones(7, 6)}, "pos must be [N, D] = [7, 7]"),
    ("masked_patch_loss", {"mask": _ones(3, 32).bool()}, "exactly one of ids and mask"),
    ("masked_patch_loss", {"ids": None}, "exactly one of ids and mask must be given, got neither"),
    ("masked_patch_loss", {"pred": _ones(3, 29, 383)}, "pred must be [B, Q, F] = [3, 29, 384]"),
    ("masked_patch_loss", {"pred": _ones(3, 29, 384).int()}, "pred must be fp32, bf16, fp16"),
    (
        "masked_patch_loss",
        {"ids": None, "mask": _ones(3, 32), "pred": _ones(3, 32, 384)},
        "mask must be bool, got torch.float32",
    ),
    ("masked_patch_loss", {"ids": 32 * _ones(3, 29).long()}, "[0, 32), got values from 32 to 32"),
    ("masked_patch_loss", {"patch": 5}, "masked_patch_loss: [T, H, W] must be positive multiples"),
    ("masked_patch_loss", {"std": None}, "mean and std go together"),
    (
        "masked_patch_loss",
        {"video": _ones(3, 3, 4, 32, 32, device="meta")},
        "video must be on pred's device cpu, got meta",
    ),
    ("shifted_patch_embed", {"weight": _ones(48, 1919)}, "weight must be [D, F] = [D, 1920]"),
    ("shifted_patch_embed", {"bias": _ones(47)}, "bias must be [D] = [48]"),
    ("shifted_patch_embed", {"pos": _ones(31, 48)}, "pos must be [N, D] = [32, 48]"),
    ("shifted_patch_embed", {"norm_bias": None}, "norm_weight and norm_bias go together"),
    ("shifted_patch_embed", {"ids_keep": 32 * _ones(2, 5).long()}, "values below N = 32"),
    ("shifted_patch_embed", {"shifts": [(0, 0, 1)]}, "shifts must be triples (dt, dy, dx) of ints"),
    (
        "shifted_patch_embed",
        {"weight": _ones(48, 1920, device="meta"), "bias": None, "pos": None},
        "weight must be on the video's device cpu, got meta",
    ),
]

SPARSE = _ones(2, 3, 7).to_sparse()
ERRORS += [
    ("erase_add", {"add": SPARSE}, "add must be dense, got torch.sparse_coo; use add.to_dense()"),
    ("erase_add", {"add": 1.5}, "add must be a tensor, got float"),
    ("erase_add", {"memory": None}, "memory must be a tensor, got NoneType"),
    ("gather_tokens", {"pos": SPARSE[0]}, "pos must be dense"),
    ("restore_tokens", {"mask_token": SPARSE[0, 0]}, "mask_token must be dense"),
    ("shifted_patch_embed", {"weight": _ones(48, 1920).to_sparse()}, "weight must be dense"),
    ("shifted_patch_embed", {"ids_keep": _ones(2, 5).to_sparse()}, "ids_keep must be dense"),
    ("masked_patch_loss", {"pred": _ones(3, 29, 384).to_sparse()}, "pred must be dense"),
    ("masked_patch_loss", {"video": SPARSE}, "video must be dense"),
    ("locality_attention", {"temperature": SPARSE[0, 0]}, "temperature must be dense"),
    ("locality_attention", {"qkv": 7}, "qkv must be a tensor, got int"),
]


@pytest.mark.parametrize("backend_name", ["eager", "auto"])
@pytest.mark.parametrize(("name", "changes", "message"), ERRORS)
def test_errors(name, changes, message, backend_name):
    op = load(name)
    case = next((case for case in op.cases if case.name == "odd"), op.cases[0])
    arguments = make_inputs(op, case).arguments | changes | {"backend": backend_name}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        op.function(**arguments)
    assert str(error.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, "ratio must be in [0, 1), got 1.0"),
        ({"ratio": -0.1}, "ratio must be in [0, 1), got -0.1"),
        ({"frames": 5}, "frames must divide tokens = 16, got 5"),
        ({"frames": 0}, "frames must divide tokens = 16, got 0"),
        ({"mode": "tubes"}, "mode must be one of random, tube, frame, got 'tubes'"),
    ],
)
def test_errors_of_random_masking(changes, message):
    with pytest.raises(ValueError, match=re.escape("random_masking: " + message)):
        random_masking(**({"batch": 2, "tokens": 16, "ratio": 0.9} | changes))


@pytest.mark.parametrize("instead", [None, 0.5, [1.0], np.ones(2, np.float32)], ids=repr)
@pytest.mark.parametrize("name", VALID)
def test_what_is_no_tensor(name, instead):
    """An error that names the argument, or a result where the argument is optional."""
    call = VALID[name]
    for argument in [n for n, x in call.arguments.items() if isinstance(x, torch.Tensor)]:
        try:
            call.function(**(call.arguments | {argument: instead}))
        except (ValueError, TypeError) as error:
            assert argument in str(error), (argument, error)
        else:
            assert instead is None, argument
