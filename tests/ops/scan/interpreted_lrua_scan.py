"""Triton's lrua_scan in Triton's interpreter; run by test_lrua_scan_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from stmeta.ops import lrua_scan
from tests.ops._harness.interpreter import prepared_once
from tests.ops.scan.test_lrua_scan import OPTIONS
from tests.ops.scan.test_lrua_scan_cuda import compare

__all__ = ["prepared_once"]  # a fixture of all tests here

SIZES = {  # B, T, H, R, N, M
    "one": (1, 1, 1, 1, 1, 1),
    "odd": (2, 2, 17, 3, 5, 3),
    "several_blocks": (1, 2, 68, 1, 4, 16),  # of units
}


def function(leaves: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, ...]:
    return lrua_scan(**leaves, backend="triton", **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_reference(options):
    compare(function, (1, 3, 5, 2, 6, 5), options)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(sizes):
    compare(function, sizes)


@pytest.mark.parametrize("name", ["usual", "read_last"])
def test_lengths_and_chunks(name, monkeypatch):
    """Two chunks of rows; as with many numbers."""
    monkeypatch.setattr("stmeta.kernels.triton.scan.lrua_scan_backward.CHUNK", 4)
    monkeypatch.setattr("stmeta.kernels.triton.scan._common.UNROLLED", 0)
    compare(function, (4, 3, 4, 2, 5, 3), OPTIONS[name], lengths=[0, 3, 2, 1])
