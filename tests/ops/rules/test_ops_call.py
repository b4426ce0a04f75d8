"""Fused ops as torch and its users see them: opcheck, torch.compile, autocast, autograd's rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stmeta._errors import BackendUnavailableError
from stmeta.ops import random_masking
from stmeta.ops._core.dispatch import overload
from stmeta.ops._core.register import INTERPRET
from tests.ops._harness import (
    ALL_OPS,
    FLOATS,
    check,
    choose,
    exact_arguments,
    load,
    make_inputs,
    run,
    run_backend,
)

OPS = {name: load(name) for name in ALL_OPS}
WITH_GRADIENT = {name: op for name, op in OPS.items() if name != "random_masking"}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
every_gradient = pytest.mark.parametrize("op", WITH_GRADIENT.values(), ids=WITH_GRADIENT)


@pytest.fixture(params=["cpu", *["triton"] * INTERPRET])
def backend(request: pytest.FixtureRequest) -> str:
    """Each fused backend that takes CPU tensors; skips with the reason."""
    return choose(request.getfixturevalue("op"), request.param).name


@pytest.mark.parametrize("mode", ["random", "tube", "frame"])
@pytest.mark.parametrize("op", [OPS["random_masking"]], ids=["random_masking"])
def test_random_masking_of_a_seed(op, mode, backend):
    """The same seed masks the same tokens on every backend; 90 % of 10 units keep one."""
    masks = [
        random_masking(
            3, 40, 0.9, torch.Generator().manual_seed(5), mode, frames=10, backend=backend_name
        )
        for backend_name in ("eager", backend)
    ]
    assert all(torch.equal(x, y) for x, y in zip(*masks, strict=True))
    assert masks[0].ids_keep.shape == (3, {"random": 4, "tube": 10, "frame": 4}[mode])


class _Recorder(TorchDispatchMode):
    """Calls of our ops as the dispatcher makes them, autograd's included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace.startswith("stmeta"):
            name = function._schema.name.split("::")[1]
            self.calls[name] = tuple(
                x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args
            )
        return function(*args, **(kwargs or {}))


def _record(inputs, backend: str) -> dict[str, tuple]:
    with _Recorder() as recorder:
        run_backend(inputs, backend)
    return recorder.calls


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@every_op
def test_opcheck(op, backend):
    """Of the op and of its backward, as the public function and autograd call them."""
    inputs = make_inputs(op, op.cases[0], op.dtypes[-1])
    calls = _record(inputs, backend)
    assert set(calls) == {op.name} | ({f"{op.name}_backward"} if inputs.leaves else set())
    forward = overload(op.name, backend)
    names = [argument.name for argument in forward._schema.arguments]
    arguments = [
        x.requires_grad_() if name in inputs.leaves else x
        for name, x in zip(names, calls[op.name], strict=True)
    ]
    torch.library.opcheck(forward, tuple(arguments))
    if inputs.leaves:
        backward = f"{op.name}_backward"
        torch.library.opcheck(overload(backward, backend), calls[backward], test_utils=CHECKS)


@pytest.mark.parametrize("value", [-1, 10**6])
@pytest.mark.parametrize(
    ("op", "call", "ids"),
    [
        (OPS["gather_tokens"], "gather_tokens", "ids_keep"),
        (OPS["gather_tokens"], "gather_tokens_backward", "ids_restore"),
        (OPS["restore_tokens"], "restore_tokens", "ids_restore"),
        (OPS["restore_tokens"], "restore_tokens_backward", "ids_restore"),
        (OPS["masked_patch_loss"], "masked_patch_loss", "ids"),
        (OPS["masked_patch_loss"], "masked_patch_loss_backward", "ids"),
        (OPS["shifted_patch_embed"], "shifted_patch_embed", "ids_keep"),
        (OPS["shifted_patch_embed"], "shifted_patch_embed_backward", "ids_keep"),
    ],
    ids=lambda param: str(param),
)
def test_kernels_check_ids_themselves(op, call, ids, value, backend):
    """The checks in Python cannot look while tracing; a kernel never reads outside."""
    if backend != "cpu":
        pytest.skip("a GPU cannot raise an error from its ids without waiting for it")
    if ids == "ids_restore" and value > 0:
        pytest.skip("an id above K stands for a token that was not kept")
    function = overload(call, backend)
    names = [argument.name for argument in function._schema.arguments]
    arguments = dict(zip(names, _record(make_inputs(op, op.cases[0]), backend)[call], strict=True))
    arguments[ids][0, 1] = value
    with pytest.raises(RuntimeError, match=ids):
        function(**arguments)


@every_gradient
def test_backward_has_a_fake_for_all_needs(op, backend):
    """`needs` may be anything; where there is none, this is the opcheck above."""
    inputs = make_inputs(op, op.cases[0])
    name = f"{op.name}_backward"
    arguments = _record(inputs, backend)[name]
    if not isinstance(arguments[-1], list) or not isinstance(arguments[-1][0], bool):
        pytest.skip(f"{name} has no `needs`")
    for chosen in range(len(arguments[-1])):
        needs = [i == chosen for i in range(len(arguments[-1]))]
        for flags in (needs, [not need for need in needs]):
            call = (*arguments[:-1], flags)
            torch.library.opcheck(overload(name, backend), call, test_utils="test_faketensor")


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in inductor
@every_op
def test_compiles_into_one_graph(op, compiler, backend):
    """Forward and backward, and a second batch size without an error."""
    torch.compiler.reset()
    inputs = make_inputs(op, op.cases[0])
    compiled = torch.compile(op.function, fullgraph=True, backend=compiler, dynamic=True)
    batch = next(iter(inputs.arguments.values())).shape[0]
    for size in (batch, 2):
        short = _first_clips(inputs, batch, size)
        plain, ours = (run(f, short, backend=backend) for f in (op.function, compiled))
        for name, x in plain.items():
            torch.testing.assert_close(ours[name], x, msg=lambda text, name=name: f"{name}: {text}")


def _first_clips(inputs, batch: int, size: int):
    """The first `size` rows of what has `batch` rows."""

    def cut(x):
        batched = isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[0] == batch
        return x[:size] if batched else x

    return replace(
        inputs,
        arguments={name: cut(x) for name, x in inputs.arguments.items()},
        grads={name: cut(x) for name, x in inputs.grads.items()},
    )


@pytest.mark.parametrize("dtype", FLOATS)
@every_op
def test_autocast_leaves_the_result_alone(op, dtype, backend):
    """The dtypes of the arguments say what is computed; a kernel must not be cast from inside."""
    if dtype not in op.dtypes:
        pytest.skip(f"{op.name} takes {op.dtypes}")
    inputs = make_inputs(op, op.cases[0], dtype)
    plain = run_backend(inputs, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_backend(inputs, backend)
    assert [name for name, x in plain.items() if not torch.equal(cast[name], x)] == []


@every_op
def test_same_bits_twice(op, backend, threads):
    """Also from one thread and from three, forward and backward.

    Torch's own matrix product depends on the number of threads, so that an op which uses it is run
    twice with the same number.
    """
    inputs = make_inputs(op, op.cases[0])
    first = run_backend(inputs, backend)
    for count in (1, 3):
        threads(count)
        if op.name == "shifted_patch_embed":
            first = run_backend(inputs, backend)
        again = run_backend(inputs, backend)
        assert [name for name, x in first.items() if not torch.equal(again[name], x)] == []


@every_gradient
def test_gradients_only_where_needed(op, backend):
    """Each gradient alone has the same bits as among all."""
    inputs = make_inputs(op, op.cases[0])
    full = run_backend(inputs, backend)
    for leaf in inputs.leaves:
        alone = run_backend(replace(inputs, leaves=(leaf,)), backend)
        assert torch.equal(alone[f"grad {leaf}"], full[f"grad {leaf}"]), leaf


@every_gradient
def test_gradients_of_one_output(op, backend):
    """Other outputs that lead nowhere have no gradient."""
    inputs = make_inputs(op, op.cases[0])
    for name, grad in inputs.grads.items():
        alone = replace(inputs, grads={name: grad})
        check(alone, run_backend(alone, backend))


@every_op
def test_without_autograd(op, backend):
    inputs = make_inputs(op, op.cases[0])
    expected = run_backend(inputs, backend)
    with torch.inference_mode():
        outputs = op.function(**inputs.arguments, backend=backend)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    for name, x in zip(op.outputs, outputs, strict=True):
        assert torch.equal(x, expected[name]), name


@every_gradient
def test_second_derivative_of_a_backward_is_an_error(op, backend):
    """Through the dispatcher alone, as compiled graphs call it; the public op has one."""
    inputs = make_inputs(op, op.cases[0])
    arguments = list(_record(inputs, backend)[f"{op.name}_backward"])
    floating = [x for x in arguments if isinstance(x, torch.Tensor) and x.is_floating_point()]
    floating[0].requires_grad_()
    outputs = overload(f"{op.name}_backward", backend)(*arguments)
    output = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    with pytest.raises(NotImplementedError, match=f"{op.name}: .* use backend='eager' for it"):
        output.sum().backward()


@every_gradient
def test_float64_is_eager(op):
    inputs = make_inputs(op, op.cases[0])
    arguments = exact_arguments(inputs.arguments)
    outputs = op.function(**arguments)
    output = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    assert output.dtype == torch.float64
    for name in ("cpu", "cuda", "triton"):
        with pytest.raises(BackendUnavailableError, match="cannot run"):
            op.function(**arguments, backend=name)


@every_op
def test_meta_tensors_have_shapes(op):
    inputs = make_inputs(op, op.cases[0])
    arguments = {
        name: x.to("meta") if isinstance(x, torch.Tensor) else x
        for name, x in inputs.arguments.items()
    }
    outputs = op.function(**arguments)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    expected = run(op.reference, replace(inputs, leaves=()))
    for name, x in zip(op.outputs, outputs, strict=True):
        assert x.device.type == "meta", name
        assert (x.shape, x.dtype) == (expected[name].shape, expected[name].dtype), name
