"""Choice of a backend: scopes, names that cannot run, the table, and lazy imports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stmeta
from stmeta._errors import BackendUnavailableError
from stmeta.ops import BACKENDS, availability, explain, patch_shift, resolve
from stmeta.ops._core import register as _register

OP = "patch_shift"
VIDEO = torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8)
GOOD = {"tubelet": 2, "patch": 4}


def test_scopes_nest_and_end():
    with stmeta.backend("eager"):
        assert resolve(OP, VIDEO) == "eager"
        with stmeta.backend("auto"):
            assert resolve(OP, VIDEO) in ("cpu", "eager")
        assert resolve(OP, VIDEO) == "eager"
        assert explain().startswith("scope: eager")
    with pytest.raises(ZeroDivisionError), stmeta.backend("eager"):
        _ = 1 / 0
    assert explain().startswith("scope: auto")


def test_argument_goes_before_scope(cpu):
    with stmeta.backend("eager"):
        assert resolve(OP, VIDEO, "cpu") == "cpu"


def test_scope_reaches_autograd_threads():
    seen = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(resolve(OP, VIDEO))
            return grad

    with stmeta.backend("eager"):
        Probe.apply(torch.zeros(2, requires_grad=True)).sum().backward()
    assert seen == ["eager"]


def test_auto_takes_the_first_that_can_run(monkeypatch):
    monkeypatch.setitem(_register.missing, OP, dict.fromkeys(BACKENDS, ""))
    assert resolve(OP, VIDEO) == "cpu"
    monkeypatch.setitem(_register.missing[OP], "cpu", "it is not built")
    assert resolve(OP, VIDEO) == "eager"
    assert "patch_shift on cpu: eager (cpu: it is not built)" in explain()
    assert resolve(OP, VIDEO.to("meta")) == "eager"


def test_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(_register.missing[OP], "cpu", "stmeta._C is not built; build it")
    message = "patch_shift: backend 'cpu' cannot run: stmeta._C is not built; build it"
    with pytest.raises(BackendUnavailableError, match=message):
        patch_shift(VIDEO, backend="cpu", **GOOD)
    with stmeta.backend("cpu"), pytest.raises(BackendUnavailableError, match=message):
        patch_shift(VIDEO, **GOOD)


def test_backend_of_another_device(monkeypatch):
    monkeypatch.setitem(_register.missing, OP, dict.fromkeys(BACKENDS, ""))
    with pytest.raises(BackendUnavailableError, match="takes tensors on cuda, got one on cpu"):
        patch_shift(VIDEO, backend="cuda", **GOOD)


def test_unknown_names():
    with pytest.raises(ValueError, match="backend must be one of"), stmeta.backend("gpu"):
        pass
    with pytest.raises(ValueError, match="backend must be one of"):
        resolve(OP, VIDEO, "gpu")
    with pytest.raises(AttributeError, match="no attribute 'opps'"):
        _ = stmeta.opps


def test_version_is_that_of_the_project():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'version = "{stmeta.__version__}"' in text


def test_extension_answers(cpu):
    info = _register.extension.build_info()
    assert set(info) == {"compiler", "cuda", "cuda_archs"}
    assert info["cuda"] == bool(info["cuda_archs"])
    with pytest.raises(ValueError, match="must be plain, avx2, avx512 or bf16dot, got sse"):
        _register.extension.set_cpu_capability("sse")


def test_cpu_capability_from_the_environment(cpu, run_python):
    code = "from stmeta._extension import extension as e; print(e.cpu_capability())"
    assert run_python(code, STMETA_CPU="plain") == "plain\n"


def test_import_is_light(run_python):
    code = (
        "import sys, stmeta; assert stmeta.__version__;"
        "print(*{'torch', 'triton', 'stmeta._C', 'nvidia', 'av'} & set(sys.modules))"
    )
    assert run_python(code) == "\n"


def test_ops_do_not_import_triton(run_python):
    assert run_python("import sys, stmeta.ops; print('triton' in sys.modules)") == "False\n"


def test_without_the_extension(run_python):
    """Everything imports, `auto` is eager, and naming the backend says what to do."""
    code = """
import os, sys
os.environ.pop("STMETA_EXTENSION", None)
sys.modules["stmeta._C"] = None
import torch, stmeta.ops
from stmeta._errors import BackendUnavailableError
video = torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8)
print(stmeta.ops.resolve("patch_shift", video))
try:
    stmeta.ops.patch_shift(video, tubelet=2, patch=4, backend="cpu")
except BackendUnavailableError as error:
    print(error)
print(torch.ops.stmeta.patch_shift.default._schema)
"""
    first, error, schema = run_python(code).splitlines()
    assert first == "eager"
    assert error.startswith("patch_shift: backend 'cpu' cannot run: stmeta._C is not built; build")
    assert schema.startswith("stmeta::patch_shift(Tensor video, Tensor? ids_keep")


def test_table(run_python):
    output = run_python(
        "import runpy; runpy.run_module('stmeta.ops', run_name='__main__')", COLUMNS="200"
    )
    assert all(name in output for name in (*BACKENDS, OP, "scope: auto", "patch_shift on cpu:"))
    for name, reason in availability(OP).items():
        assert not reason or f"{name}: {reason}" in output
