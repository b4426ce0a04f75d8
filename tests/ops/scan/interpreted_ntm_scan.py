"""Triton's ntm_scan in Triton's interpreter; run by test_ntm_scan_triton.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stmeta.ops import ntm_scan
from tests.ops._harness.interpreter import prepared_once
from tests.ops.scan.test_ntm_scan import OPTIONS, make, run, single

__all__ = ["prepared_once"]  # a fixture of all tests here

SIZES = {  # B, T, H, R, W, N, M
    "one": (1, 1, 1, 1, 1, 1, 1),
    "odd": (1, 3, 3, 2, 3, 5, 3),
    "several_blocks": (1, 2, 68, 1, 1, 4, 9),  # of units
}


def compare(arguments: dict[str, Tensor], **options) -> None:
    """Values and gradients within 4 errors of eager in fp32, both against float64.

    Eager also runs on inputs that differ by a rounding: sharp heads multiply errors by luck.
    """
    exact = run(arguments, torch.float64, "eager", **options)
    fused = run(arguments, torch.float32, "triton", **options)
    near = {n: x if n == "lengths" else x * (1 + 6e-8) for n, x in arguments.items()}
    plain, other = (run(x, torch.float32, "eager", **options) for x in (arguments, near))
    given = [f"gradient of {name}" for name in arguments if name != "lengths"]
    names = ["y", "memory", "weights", "c", *given]
    for name, truth, ours, *eager in zip(names, exact, fused, plain, other, strict=True):
        assert ours.shape == truth.shape and ours.dtype == torch.float32
        error, *others = (float((x.double() - truth).abs().max()) for x in (ours, *eager))
        allowed = 4 * (max(others) + 6e-8 * float(truth.abs().max()))
        assert error <= allowed, f"{name}: {error}, {allowed} is allowed"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_reference(options):
    made = {k: v for k, v in options.items() if k in ("fed", "taps")}
    passed = {k: v for k, v in options.items() if k != "fed"}
    compare(make((1, 2, 4, 2, 1, 6, 5), **made), **passed)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(sizes):
    taps = 1 if sizes == SIZES["one"] else 3
    compare(make(sizes, taps=taps), taps=taps)


@pytest.mark.parametrize("read_first", [True, False])
def test_lengths_and_chunks(read_first, monkeypatch):
    """Two chunks of rows, two segments of steps; as with many numbers."""
    monkeypatch.setattr("stmeta.kernels.triton.scan.ntm_scan_backward.CHUNK", 4)
    monkeypatch.setattr("stmeta.kernels.triton.scan._common.UNROLLED", 0)
    arguments = make((3, 3, 3, 1, 1, 5, 3)) | {"lengths": torch.tensor([0, 3, 2])}
    compare(arguments, read_first=read_first)


def test_any_strides_and_no_input_is_written():
    plain = single(make((2, 1, 3, 1, 1, 4, 3)))
    turned = {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in plain.items()}
    turned["memory"] = plain["memory"][:1].expand(2, -1, -1)
    plain["memory"] = turned["memory"].contiguous()
    kept = {name: x.clone() for name, x in plain.items()}
    pairs = zip(*(ntm_scan(**x, backend="triton") for x in (turned, plain)), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert all(torch.equal(kept[name], x) for name, x in plain.items())
