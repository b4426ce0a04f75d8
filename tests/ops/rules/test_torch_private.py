"""The private torch APIs: this torch has all of them, and without any one results are the same."""

from __future__ import annotations

import json

import pytest
import torch

from stmeta._extension import extension
from stmeta.ops._core.torch_private import MISSING, PRIVATE

# A child for each name, which hides that API from ops before they look for it, not from torch.
CODE = """
import json, operator, os, sys
import torch

find = operator.attrgetter

def leaves(*shapes):
    return [torch.randn(shape).mul_(0.3).requires_grad_() for shape in shapes]

def numbers(tensors):
    return torch.cat([x.detach().double().flatten() for x in tensors]).tolist()

def results(hidden):
    def attrgetter(name):
        if name == hidden:
            raise AttributeError(name)
        return find(name)
    operator.attrgetter = attrgetter
    from stmeta.ops import erase_add, lrua_scan
    from stmeta.ops._core.torch_private import FAST_AUTOGRAD, MISSING
    operator.attrgetter = find
    torch.manual_seed(0)
    B, T, H, R, N, M = 2, 3, 4, 2, 5, 3
    shapes = ((B, T, 4 * H), (4 * H, H + R * M), (R * (2 * M + 2), H), (R * (2 * M + 2),))
    wanted = leaves(*shapes, (B, N, M), (B, R, N), (B, R * M), (B, H), (B, H))
    *tensors, previous, reads, h, c = wanted
    out = lrua_scan(*tensors, torch.rand(B, N), previous, reads, h, c)
    found = [*out, *torch.autograd.grad(out.y.square().sum() + out.memory.sum(), wanted)]
    step = leaves((B, N, M), (B, R, N), (B, R, M), (B, R, M))
    written = erase_add(*step)
    first = torch.autograd.grad(written.square().sum(), step, create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), step)
    ones = tuple(torch.ones_like(x) for x in step)
    _, tangent = torch.func.jvp(erase_add, tuple(x.detach() for x in step), ones)
    found += [written, *first, *second, tangent]
    return {"fast": FAST_AUTOGRAD, "missing": MISSING, "numbers": numbers(found)}

for name in sys.argv[1:]:
    if os.fork() == 0:
        try:
            print(json.dumps(results(name)), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""


def test_this_torch_has_all():
    assert MISSING == (), f"torch {torch.__version__} lacks {', '.join(MISSING)}"


@pytest.mark.skipif(extension is None, reason="stmeta._C is not built")
def test_results_are_the_same_without_any(run_python):
    """Values, gradients, second derivatives and tangents."""
    usual, *others = map(json.loads, run_python(CODE, "none", *PRIVATE).splitlines())
    assert usual["fast"] and usual["missing"] == [] and len(others) == len(PRIVATE)
    for (name, effect), found in zip(PRIVATE.items(), others, strict=True):
        assert found["missing"] == [name]
        assert found["fast"] == ("public way" not in effect), name
        ours, theirs = (torch.tensor(x["numbers"]) for x in (found, usual))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
