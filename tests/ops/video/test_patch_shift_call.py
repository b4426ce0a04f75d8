"""patch_shift as torch and its callers see it: errors, opcheck, torch.compile, autograd's rules."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import stmeta
from stmeta._errors import BackendUnavailableError
from stmeta.ops import patch_shift
from stmeta.ops._core.dispatch import overload
from tests.ops.video._patch_shift_cases import CASES, make_inputs, run_backend

OP = "patch_shift"
VIDEO = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
GOOD = {"tubelet": 2, "patch": 4}
WEIGHT = torch.ones(2 * 4 * 4 * 5 * 3)
NORM = {"norm_weight": WEIGHT, "norm_bias": WEIGHT}


def _ids(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor([values, values], dtype=dtype)


@pytest.mark.parametrize("backend_name", ["eager", "auto"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": VIDEO[0]}, "video must be [B, C, T, H, W], got [3, 4, 8, 8]"),
        ({"video": VIDEO.int()}, "video must be uint8 or floating point, got torch.int32"),
        ({"tubelet": 3}, "must be positive multiples of [3, 4, 4], got [4, 8, 8]"),
        ({"patch": 5}, "must be positive multiples of [2, 5, 5], got [4, 8, 8]"),
        ({"video": VIDEO[:, :, :0]}, "positive multiples of [2, 4, 4], got [0, 8, 8]"),
        ({"video": VIDEO[:, :0]}, "C = 0"),
        ({"patch": 0}, "patch must be a positive int, got 0"),
        ({"tubelet": 2.0}, "tubelet must be a positive int, got 2.0"),
        ({"shifts": "round"}, "shifts must be one of ('none', 'diagonal', 'cardinal')"),
        ({"shifts": []}, "shifts must be triples (dt, dy, dx) of ints, the first (0, 0, 0)"),
        ({"shifts": [(0, 0, 1)]}, "the first (0, 0, 0), got [(0, 0, 1)]"),
        ({"shifts": [(0, 0, 0), (1, 2)]}, "shifts must be triples"),
        ({"shifts": [(0, 0, 0), (0, 0.5, 0)]}, "shifts must be triples (dt, dy, dx) of ints"),
        ({"mean": [0.5] * 3}, "mean and std go together"),
        (
            {"mean": 0.5, "std": 0.2},
            "mean must be a sequence of C = 3 numbers, got 0.5; repeat one",
        ),
        ({"shifts": 5}, "shifts must be triples (dt, dy, dx) of ints, the first (0, 0, 0), got 5"),
        ({"mean": [0.5] * 4, "std": [1.0] * 3}, "mean must have C = 3 numbers, got 4"),
        ({"mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]}, "std must be positive, got [1.0, 0.0, 1.0]"),
        ({"norm_weight": WEIGHT}, "norm_weight and norm_bias go together"),
        (
            {**NORM, "norm_bias": WEIGHT[1:]},
            "norm_bias must be [F] = [480] floating point, got [479]",
        ),
        ({**NORM, "norm_weight": WEIGHT.long()}, "got [480] torch.int64"),
        ({**NORM, "norm_weight": WEIGHT.to("meta")}, "must be on the video's device cpu, got meta"),
        ({**NORM, "eps": -1.0}, "eps must not be negative, got -1.0"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"dtype": torch.float64}, "for a video of torch.uint8, got torch.float64"),
        (
            {"ids_keep": _ids(0)[0]},
            "ids_keep must be [B, K] = [2, K] int64 with values below N = 8",
        ),
        ({"ids_keep": _ids(0)[:1]}, "got [1, 1] torch.int64"),
        ({"ids_keep": _ids(0, dtype=torch.int32)}, "got [2, 1] torch.int32"),
        ({"ids_keep": _ids(0).to("meta")}, "on cpu, got meta"),
        ({"ids_keep": _ids(0, 8)}, "below N = 8, got values from 0 to 8"),
        ({"ids_keep": _ids(-1, 3)}, "below N = 8, got values from -1 to 3"),
        ({"backend": "gpu"}, "backend must be one of ('auto', 'eager', 'cpu', 'triton', 'cuda')"),
    ],
)
def test_errors(changes, message, backend_name):
    kwargs = {"video": VIDEO, "backend": backend_name, **GOOD, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_shift(**kwargs)


def _arguments(video: torch.Tensor, ids: torch.Tensor | None, dtype: torch.dtype) -> tuple:
    weight, bias = (WEIGHT.to(video.device).requires_grad_() for _ in range(2))
    shifts = [0, 0, 0, 0, -2, -2, 0, -2, 2, 0, 2, -2, 0, 2, 2]
    return video, ids, weight, bias, [2, 4], shifts, [0.1] * 3, [0.2] * 3, 1e-5, dtype


def test_kernels_check_ids_themselves(cpu):
    """The checks in Python cannot look while tracing; the kernel never reads outside."""
    op = overload(OP, "cpu")
    for ids in (_ids(0, 8), _ids(-1, 3)):
        with pytest.raises(RuntimeError, match="ids_keep must have values below N = 8"):
            op(*_arguments(VIDEO, ids, torch.float32))


def test_video_gradient_needs_different_ids(cpu):
    """Known before the call; the kernel looks as well."""
    video = torch.zeros(2, 3, 4, 8, 8, requires_grad=True)
    with pytest.raises(BackendUnavailableError, match="no two in a row are alike, got one twice"):
        patch_shift(video, ids_keep=_ids(3, 3), backend="cpu", **GOOD)
    arguments = _arguments(video, _ids(3, 3), torch.float32)
    tokens, _, _ = overload(OP, "cpu")(*arguments)
    with pytest.raises(RuntimeError, match="no value twice in a row, got 3 twice in row 0"):
        tokens.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, backend):
    ids = _ids(5, 1, 2).to(backend.device)
    for video in (VIDEO, torch.rand(VIDEO.shape, requires_grad=True)):
        for kept in (None, ids):
            arguments = _arguments(video.to(backend.device), kept, dtype)
            torch.library.opcheck(overload(OP, backend.name), arguments)
    video = arguments[0].detach()
    tokens, mean, rstd = overload(OP, backend.name)(video, *arguments[1:])
    backward = (tokens.detach(), video, ids, arguments[2].detach(), mean, rstd, *arguments[4:8])
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(overload("patch_shift_backward", backend.name), (*backward, needs))


def _loss(inputs, video: torch.Tensor, weight: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    tokens = patch_shift(
        video,
        norm_weight=weight,
        norm_bias=inputs.bias,
        ids_keep=inputs.ids_keep,
        backend=backend,
        **inputs.kwargs,
    )
    return (tokens * inputs.grad).sum()


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in inductor
def test_compiles_into_one_graph(compiler, backend):
    """Forward and backward, and a second batch size without a graph of its own."""
    torch.compiler.reset()
    inputs = make_inputs(replace(CASES[0], video=torch.float32), backend.device)
    compiled = torch.compile(_loss, fullgraph=True, backend=compiler, dynamic=True)
    for batch in (2, 1):
        inputs.ids_keep, inputs.grad = inputs.ids_keep[:batch], inputs.grad[:batch]
        leaves = [inputs.video[:batch].clone().requires_grad_(), inputs.weight.requires_grad_()]
        results = []
        for function in (_loss, compiled):
            loss = function(inputs, *leaves, backend.name)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for eager, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)


def test_compiled_function_obeys_the_scope(cpu):
    """The scope is read at each call, and not frozen with the first trace."""
    torch.compiler.reset()
    seen = []

    def spy(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        seen.append(any("stmeta" in str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(lambda: patch_shift(VIDEO, **GOOD), fullgraph=True, backend=spy)
    compiled()
    with stmeta.backend("eager"):
        compiled()
    compiled()
    assert seen == [True, False]


def test_second_derivative(backend):
    """A named backend's backward is eager's where its own derivative is asked for."""
    inputs = make_inputs(CASES[2], backend.device)
    seconds = []
    for name in (backend.name, "eager"):
        video, weight = (x.detach().requires_grad_() for x in (inputs.video, inputs.weight))
        loss = _loss(inputs, video, weight, name)
        (gradient,) = torch.autograd.grad(loss.square(), video, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), (video, weight)))
    for ours, eager in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4 * float(eager.abs().max()))


def test_gradients_only_where_needed(backend):
    inputs = make_inputs(CASES[2], backend.device)
    full = run_backend(inputs, backend.name)
    video = inputs.video.requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(inputs, video, inputs.weight, backend.name), video)
    assert torch.equal(gradient, full[1])


def test_float64_is_eager():
    video = VIDEO.double()
    assert patch_shift(video, **GOOD).dtype == torch.float64
    for name in ("cpu", "cuda", "triton"):
        with pytest.raises(BackendUnavailableError, match="cannot run"):
            patch_shift(video, backend=name, **GOOD)


def test_meta_tensors_have_shapes():
    tokens = patch_shift(VIDEO.to("meta"), **GOOD)
    assert tokens.shape == (2, 8, 480) and tokens.device.type == "meta"


def test_autocast_leaves_the_result_alone(backend):
    inputs = make_inputs(CASES[0], backend.device)
    plain = run_backend(inputs, backend.name)[0]
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        assert torch.equal(run_backend(inputs, backend.name)[0], plain)
