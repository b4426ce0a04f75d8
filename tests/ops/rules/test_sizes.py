"""Sizes of 0 and 1 on every axis of every op: what eager gives, or one clear error.

Any two axes at a time are 0 or 1; the others are 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta import ops
from stmeta._errors import BackendUnavailableError
from stmeta.ops._core.register import INTERPRET
from tests.ops._harness.draw import choice

Arguments = dict[str, Any]


def _draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ids(batch: int, count: int, keep: int) -> Tensor:
    return choice(torch.Generator().manual_seed(0), batch, count, min(keep, count))


def _content(B: int, N: int, M: int, H: int) -> Arguments:
    return {"memory": _draw(B, N, M), "key": _draw(B, H, M), "strength": _draw(B, H)}


def _location(B: int, N: int, H: int, S: int) -> Arguments:
    rows = {name: _draw(B, H, N) for name in ("content", "previous")}
    return rows | {"gate": _draw(B, H), "shift": _draw(B, H, S), "sharpen": 1 + _draw(B, H)}


def _read(B: int, N: int, M: int, H: int) -> Arguments:
    return {"memory": _draw(B, N, M), "weight": _draw(B, H, N)}


def _erase_add(B: int, N: int, M: int, W: int) -> Arguments:
    return _read(B, N, M, W) | {"erase": _draw(B, W, M), "add": _draw(B, W, M)}


def _ntm_step(B: int, N: int, M: int, H: int, W: int, S: int) -> Arguments:
    place = _location(B, N, H, S)
    del place["content"]
    return {**_content(B, N, M, H), **place, "erase": _draw(B, W, M), "add": _draw(B, W, M)}


def _lrua_step(B: int, N: int, M: int, R: int) -> Arguments:
    step = _content(B, N, M, R) | {"usage": _draw(B, N), "previous": _draw(B, R, N)}
    return step | {"gate": _draw(B, R), "add": _draw(B, R, M)}


def _allocation(B: int, N: int) -> Arguments:
    return {"usage": _draw(B, N)}


def _temporal_link(B: int, W: int, N: int) -> Arguments:
    rows = {name: _draw(B, W, N) for name in ("precedence", "write_weight")}
    return {"link": _draw(B, W, N, N), **rows}


def _attention(B: int, N: int, H: int, E: int) -> Arguments:
    return {"qkv": _draw(B, N, 3, H, E), "temperature": _draw(H)}


def _gather(B: int, N: int, D: int, K: int) -> Arguments:
    return {"x": _draw(B, N, D), "ids_keep": _ids(B, N, K), "pos": _draw(N, D)}


def _restore(B: int, N: int, D: int, K: int) -> Arguments:
    latent = {"latent": _draw(B, min(K, N), D), "mask_token": _draw(D)}
    return latent | {"ids_restore": _ids(B, N, N), "pos": _draw(N, D)}


def _norm(count: int) -> Arguments:
    return {"norm_weight": _draw(count), "norm_bias": _draw(count)}


def _patches(B: int, C: int, T: int, H: int, W: int, K: int, p: int) -> Arguments:
    video = {"video": _draw(B, C, T, H * p, W * p), "tubelet": 1, "patch": p}
    return video | _norm(5 * p * p * C) | {"ids_keep": _ids(B, T * H * W, K)}


def _embed(B: int, C: int, T: int, H: int, W: int, K: int, D: int) -> Arguments:
    video = _patches(B, C, T, H, W, K, 2)
    video["video"] = (255 * video["video"]).to(torch.uint8)
    return video | {"weight": _draw(D, 20 * C), "bias": _draw(D), "pos": _draw(T * H * W, D)}


def _loss(B: int, C: int, T: int, H: int, W: int, Q: int) -> Arguments:
    video = {"video": _draw(B, C, T, 2 * H, 2 * W), "tubelet": 1, "patch": 2}
    ids = _ids(B, T * H * W, Q)
    return video | {"pred": _draw(*ids.shape, 4 * C), "ids": ids}


def _loss_of_a_mask(B: int, C: int, T: int, H: int, W: int) -> Arguments:
    tokens = T * H * W
    video = _loss(B, C, T, H, W, tokens)
    del video["ids"]
    return video | {"mask": _draw(B, tokens) < 0.5}


def _lrua_scan(B: int, T: int, H: int, R: int, N: int, M: int) -> Arguments:
    numbers, state = R * (2 * M + 2), {"h": _draw(B, H), "c": _draw(B, H)}
    weights = {"recurrent": _draw(4 * H, H + R * M), "interface": _draw(numbers, H)}
    memory = {"memory": _draw(B, N, M), "usage": _draw(B, N), "previous": _draw(B, R, N)}
    state |= {"gates": _draw(B, T, 4 * H), "bias": _draw(numbers), "reads": _draw(B, R * M)}
    return weights | memory | state


def _ntm_scan(B: int, T: int, H: int, R: int, W: int, N: int, M: int) -> Arguments:
    arguments = _lrua_scan(B, T, H, R, N, M)
    numbers = (R + W) * (M + 4) + 2 * W * M
    arguments |= {"weights": _draw(B, R + W, N), "interface": _draw(numbers, H), "taps": 1}
    arguments["bias"] = _draw(numbers)
    return {name: x for name, x in arguments.items() if name not in ("usage", "previous")}


MAKERS: dict[str, tuple[str, Callable[..., Arguments]]] = {
    "content_addressing": ("BNMH", _content),
    "location_addressing": ("BNHS", _location),
    "memory_read": ("BNMH", _read),
    "erase_add": ("BNMW", _erase_add),
    "ntm_step": ("BNMHWS", _ntm_step),
    "lrua_step": ("BNMR", _lrua_step),
    "allocation": ("BN", _allocation),
    "temporal_link": ("BWN", _temporal_link),
    "locality_attention": ("BNHE", _attention),
    "gather_tokens": ("BNDK", _gather),
    "restore_tokens": ("BNDK", _restore),
    "patch_shift": ("BCTHWKp", _patches),
    "shifted_patch_embed": ("BCTHWKD", _embed),
    "masked_patch_loss": ("BCTHWQ", _loss),
    "masked_patch_loss-mask": ("BCTHW", _loss_of_a_mask),
    "lrua_scan": ("BTHRNM", _lrua_scan),
    "ntm_scan": ("BTHRWNM", _ntm_scan),
}


def sizes_of(axes: int) -> Iterator[tuple[int, ...]]:
    """Any two axes 0 or 1, the others 3."""
    for places in itertools.combinations(range(axes), 2):
        for small in itertools.product((0, 1), repeat=2):
            sizes = [3] * axes
            for place, size in zip(places, small, strict=True):
                sizes[place] = size
            yield tuple(sizes)


def outcome(name: str, arguments: Arguments, backend: str) -> list[Tensor] | str:
    """Results and gradients, or a ValueError of the op."""
    leaves = {
        key: x.clone().requires_grad_()
        for key, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    try:
        out = getattr(ops, name)(**(arguments | leaves), backend=backend)
    except BackendUnavailableError:  # of a backend that is named: a limit of its kernel
        assert backend not in ("auto", "eager")
        return ""
    except ValueError as error:
        assert str(error).startswith(f"{name}: ")
        return str(error)
    out = (out,) if isinstance(out, Tensor) else out
    loss = sum(((0.7 * x).sin().sum() for x in out if x.requires_grad), torch.zeros(()))
    grads = torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True)
    return [x.detach() for x in (*out, *grads)]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Triton interpreted
@pytest.mark.parametrize("backend", ["auto", "cpu", *["triton"] * INTERPRET])
@pytest.mark.parametrize("case", MAKERS)
def test_sizes_of_0_and_1(case, backend):
    name, (axes, make) = case.split("-")[0], MAKERS[case]
    if backend != "auto":
        reason = ops.availability(name)[backend]
        if reason:
            pytest.skip(reason)
    ran = 0
    for sizes in sizes_of(len(axes)):
        arguments, about = make(*sizes), dict(zip(axes, sizes, strict=True))
        eager, ours = (outcome(name, arguments, x) for x in ("eager", backend))
        if isinstance(eager, str) or isinstance(ours, str):
            assert eager == ours or ours == "", about
            continue
        ran += 1
        for x, y in zip(ours, eager, strict=True):
            assert x.shape == y.shape and bool(x.double().isfinite().all()), about
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-4), about
    assert ran > 0


@pytest.mark.parametrize("mode", ["random", "tube", "frame"])
@pytest.mark.parametrize("sizes", [(0, 4, 2), (2, 0, 1), (1, 1, 1), (0, 0, 1), (2, 3, 3)])
def test_masks_of_nothing(sizes, mode):
    batch, tokens, frames = sizes
    masks = [
        ops.random_masking(
            batch, tokens, 0.5, torch.Generator().manual_seed(0), mode, frames=frames, backend=name
        )
        for name in ("eager", "auto")
    ]
    for x, y in zip(*masks, strict=True):
        assert torch.equal(x, y)
    assert masks[0].mask.shape == (batch, tokens)
