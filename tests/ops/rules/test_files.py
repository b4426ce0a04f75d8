"""One stem finds all of an op, and the old names of what was renamed still work."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks._table import load
from stmeta import ops
from stmeta.ops._core.dispatch import registered_ops
from tests.ops._harness import ROOT


@pytest.mark.parametrize("op", registered_ops())
def test_one_stem_finds_all(op):
    """The same room has its reference, kernels, test and benchmark."""
    (reference,) = ROOT.glob(f"stmeta/ops/*/{op}.py")
    room = reference.parent.name
    assert (ROOT / "tests" / "ops" / room / f"test_{op}.py").is_file()
    assert (ROOT / "benchmarks" / room / f"bench_{op}.py").is_file()
    kernels = [*ROOT.glob(f"kernels/triton/*/{op}.py"), *ROOT.glob(f"csrc/*/*/{op}.c*")]
    assert kernels and {path.parent.name for path in kernels} == {room}


def test_triton_kernels_are_named_after_their_op():
    """As profiles show them: _<op>_fwd_kernel, _<op>_bwd_<part>_kernel."""
    for path in ROOT.glob("kernels/triton/*/[a-z]*.py"):
        op = path.stem.removesuffix("_backward")
        names = re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)
        wrong = [name for name in names if not re.match(rf"_{op}_(fwd|bwd)_(\w+_)?kernel$", name)]
        assert not wrong, f"{path.name}: {wrong}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("memory_scan", "lrua_scan"),
        ("memory_scan_ref", "lrua_scan_ref"),
        ("MemoryScan", "LRUAScan"),
    ],
)
def test_old_names_warn(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; use stmeta"):
        assert getattr(ops, old) is getattr(ops, new)


def test_a_name_that_never_was():
    with pytest.raises(AttributeError, match="no attribute"):
        _ = ops.no_op  # pyright: ignore


def test_stored_results_have_todays_names(tmp_path):
    rows = [{"op": "memory_scan", "case": "a"}, {"op": "erase_add", "case": "b"}]
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"rows": rows, "left_out": [{"op": "memory_scan"}]}))
    results = load(path)
    assert [row["op"] for row in results["rows"]] == ["lrua_scan", "erase_add"]
    assert results["left_out"] == [{"op": "lrua_scan"}]
