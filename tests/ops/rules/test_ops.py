"""Every fused op on every backend of this machine's CPU, against the float64 reference.

The cases lie in tests/ops/cases, the rule in tests/ops/_harness/__init__.py. GPUs: test_ops_gpu.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stmeta._extension import extension
from stmeta.ops._core.register import INTERPRET
from tests.ops._harness import (
    ALL_OPS,
    FLOATS,
    GRAD_LAYOUTS,
    LAYOUTS,
    MEMORY_OPS,
    check,
    choose,
    exact_arguments,
    load,
    make_inputs,
    run,
    run_backend,
    run_eager,
    run_exact,
)
from tests.ops._harness.rounding import check_pooled

OPS = {name: load(name) for name in ALL_OPS}
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases
]
DTYPED = [
    pytest.param(*param.values, dtype, id=f"{param.id}-{str(dtype)[6:]}")
    for param in CASES
    for dtype in param.values[0].dtypes
]
BACKENDS = ["cpu", *["triton"] * INTERPRET]
NAN_CASES = ("odd", "five_taps")
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each fused backend that takes CPU tensors; skips with the reason."""
    return choose(request.getfixturevalue("op"), request.param).name


@pytest.fixture(params=["plain", "avx2", "avx512", "bf16dot", *["triton"] * INTERPRET])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of those backends, and each instruction set of the CPU kernels; gives the backend."""
    op = request.getfixturevalue("op")
    if request.param == "triton":
        yield choose(op, "triton").name
        return
    name = choose(op, "cpu").name
    before = extension.cpu_capability()
    try:
        extension.set_cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield name
    extension.set_cpu_capability(before)


@pytest.mark.parametrize(("op", "case", "dtype"), DTYPED)
def test_matches_reference(op, case, dtype, implementation):
    inputs = make_inputs(op, case, dtype)
    check(inputs, run_backend(inputs, implementation), case.factor)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_eager_is_the_reference(op, case):
    inputs = make_inputs(op, case)
    results, expected = run_backend(inputs, "eager"), run_eager(inputs)
    assert all(torch.equal(results[name], x) for name, x in expected.items())
    assert all(bool(x.isfinite().all()) for x in results.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_op
def test_layouts(op, layout, dtype, backend):
    """Inputs with any strides; they are not written to, and results do not share their memory."""
    if dtype not in op.dtypes:
        pytest.skip(f"{op.name} takes {op.dtypes}")
    inputs = make_inputs(op, op.cases[0], dtype, layout=layout)
    tensors = [x for x in inputs.arguments.values() if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in tensors]
    results = run_backend(inputs, backend)
    check(inputs, results)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    memory = {x.untyped_storage().data_ptr() for x in tensors}
    assert not any(x.untyped_storage().data_ptr() in memory for x in results.values())


@pytest.mark.parametrize("layout", GRAD_LAYOUTS)
@every_op
def test_layouts_of_the_gradient(op, layout, backend):
    inputs = make_inputs(op, op.cases[0], grad_layout=layout)
    before = {name: grad.clone() for name, grad in inputs.grads.items()}
    check(inputs, run_backend(inputs, backend))
    assert all(torch.equal(grad, before[name]) for name, grad in inputs.grads.items())


@pytest.mark.filterwarnings("ignore:(All-NaN|invalid value):RuntimeWarning")  # Triton interpreted
@pytest.mark.parametrize("op", [OPS[name] for name in MEMORY_OPS], ids=MEMORY_OPS)
def test_nan_comes_out_where_eager_has_it(op, implementation):
    """It must not become a number, nor reach other elements of the batch."""
    inputs = make_inputs(op, next(case for case in op.cases if case.name in NAN_CASES))
    for name in inputs.leaves:
        broken = inputs.arguments[name].clone()
        broken.view(-1)[0] = float("nan")
        arguments = inputs.arguments | {name: broken}
        eager, ours = (
            run(function, replace(inputs, arguments=arguments), **options)
            for function, options in (
                (op.reference, {}),
                (op.function, {"backend": implementation}),
            )
        )
        assert any(bool(x.isnan().any()) for x in eager.values())
        for output in op.outputs:
            if output != "rows":
                found, wanted = ours[output].isnan(), eager[output].isnan()
                assert torch.equal(found, wanted), f"{output}, by a NaN in {name}"


@every_op
def test_reference_gradients(op):
    inputs = make_inputs(op, op.tiny, torch.float64)
    if not inputs.leaves:
        pytest.skip(f"{op.name} has no derivative")
    arguments = exact_arguments(inputs.arguments)

    def function(*leaves):
        outputs = op.reference(**(arguments | dict(zip(inputs.leaves, leaves, strict=True))))
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(x for x in outputs if x.requires_grad)

    leaves = [arguments[name].clone().requires_grad_() for name in inputs.leaves]
    assert torch.autograd.gradcheck(function, leaves)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@every_op
def test_any_shape(op, backend, data):
    """Shapes, strides and dtypes that nobody thought of.

    What is worse than eager in one draw of the numbers must be no worse in the mean over many: a
    result that is one number can be exact by luck.
    """
    case = op.sized(**{k: data.draw(st.integers(*v), label=k) for k, v in op.sizes.items()})
    dtype = data.draw(st.sampled_from(op.dtypes))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    grad_layout = data.draw(st.sampled_from(GRAD_LAYOUTS))

    def drawn(seed: int):
        return make_inputs(op, case, dtype, layout=layout, grad_layout=grad_layout, seed=seed)

    inputs = drawn(0)
    try:
        check(inputs, run_backend(inputs, backend), factor=8)
    except AssertionError as failure:
        if "error" not in str(failure):
            raise
        many = [drawn(seed) for seed in range(64)]
        check_pooled(((run_exact(x), run_eager(x), run_backend(x, backend)) for x in many), 4)
