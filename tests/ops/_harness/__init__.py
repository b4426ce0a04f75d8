"""One way to test every fused op: cases are data (tests/ops/<room>/test_<op>.py), the rule is here.

A backend's error against the float64 reference is at most twice that of the reference in the dtype
of the inputs, and one rounding. Integer results are equal.

    op = load("erase_add")
    inputs = make_inputs(op, op.cases[0], torch.bfloat16)
    check(inputs, run_backend(inputs, "cpu"))
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta.ops import availability
from stmeta.ops._core.register import INTERPRET
from tests.ops.conftest import LAYOUTS, Backend

ROOT = Path(__file__).resolve().parents[3]


def declared(room: str = "*") -> tuple[str, ...]:
    """Ops whose test_<op>.py has cases, of one room or of all: by file, for no list to edit."""
    files = sorted((ROOT / "tests" / "ops").glob(f"{room}/test_*.py"))
    with_cases = [p for p in files if re.search(r"^OP = Op\(", p.read_text(), re.MULTILINE)]
    return tuple(path.stem.removeprefix("test_") for path in with_cases)


def in_triton(names: Iterable[str]) -> tuple[str, ...]:
    """Those that have a Triton kernel."""
    return tuple(name for name in names if [*ROOT.glob(f"kernels/triton/*/{name}.py")])


ALL_OPS, MEMORY_OPS = declared(), declared("memory")
TOKEN_OPS = tuple(name for name in declared("video") if name != "locality_attention")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
GRAD_LAYOUTS = (*LAYOUTS, "sum")  # "sum": stride 0 everywhere, as from `.sum()`

Arguments = dict[str, Any]  # keyword arguments of the public function
Results = dict[str, Tensor]  # outputs by name, and "grad <argument>"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call. `make` gives float64 and integer tensors, and plain options (any `dtype` there
    stands for the dtype under test)."""

    name: str
    make: Callable[[torch.Generator], Arguments]
    fp32: tuple[str, ...] = ()  # tensors that stay fp32 whatever the dtype of the others
    constant: tuple[str, ...] = ()  # floating tensors that get no gradient
    backward: bool = True  # False: the gradient is not defined here
    factor: float | None = None  # of `check`, in the place of the op's


@dataclass(frozen=True, kw_only=True)
class Op:
    """What the harness must know of an op. The first case is its usual one."""

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    outputs: tuple[str, ...]
    cases: tuple[Case, ...]
    real: tuple[Case, ...]  # benchmarked shapes, for a GPU
    tiny: Case  # for gradcheck
    sizes: dict[str, tuple[int, int]]  # for hypothesis: what `sized` takes, least and most
    sized: Callable[..., Case]
    constant: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()  # tensors without an axis of the batch, as weights
    never_zero: tuple[str, ...] = ()  # sizes that the op refuses where they are 0
    dtypes: tuple[torch.dtype, ...] = FLOATS
    factor: float = 2.0  # of `check`; more for a chain of steps whose gradients cancel
    products: bool = False  # fp32 results too come from matrix products in the dtype under test

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)  # hypothesis prints all fields otherwise


@dataclass
class Inputs:
    """Arguments of a call, which of them get gradients, and the gradients of its outputs."""

    op: Op
    dtype: torch.dtype
    arguments: Arguments
    leaves: tuple[str, ...]
    grads: dict[str, Tensor] = field(default_factory=dict)


def load(name: str) -> Op:
    """The op that tests/ops/<room>/test_<name>.py declares."""
    (path,) = (ROOT / "tests" / "ops").glob(f"*/test_{name}.py")
    return importlib.import_module(f"tests.ops.{path.parent.name}.{path.stem}").OP


def sizes_of_zero(names: Sequence[str]) -> list[tuple[str, str]]:
    """Ops of a memory, and which of their sizes can be 0."""
    sizes = ("batch", "rows", "width", "heads")
    ops = [load(name) for name in names]
    return [(op.name, x) for op in ops for x in sizes if x in op.sizes and x not in op.never_zero]


def case_of_zero(op: Op, size: str) -> Case:
    """A call whose other sizes are the usual ones of a search."""
    sizes = {key: high for key, (_, high) in op.sizes.items()} | {size: 0}
    if size == "heads":
        sizes |= {key: 0 for key in ("reads", "writes") if key in sizes}
    return op.sized(**sizes)


def choose(op: Op, name: str) -> Backend:
    """The backend and the device of its tensors, or a skip with the reason."""
    reason = availability(op.name)[name]
    if reason:
        pytest.skip(reason)
    on_gpu = name == "cuda" or (name == "triton" and not INTERPRET)
    return Backend(name, "cuda" if on_gpu else "cpu")


def make_inputs(
    op: Op,
    case: Case,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    layout: str = "contiguous",
    grad_layout: str = "contiguous",
    seed: int = 0,
) -> Inputs:
    """Random inputs, the same each time.

    Args:
        op: the op.
        case: one of its cases.
        dtype: of its floating tensors, but for those that stay fp32.
        device: where they lie.
        layout: a name of `LAYOUTS`, of every input.
        grad_layout: a name of `GRAD_LAYOUTS`, of the gradient of every output.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    arguments = case.make(generator)
    leaves = []
    for name, x in arguments.items():
        if isinstance(x, Tensor):
            if x.is_floating_point():
                x = x.to(torch.float32 if name in case.fp32 else dtype)
                leaves += [name] * (name not in (*op.constant, *case.constant))
            arguments[name] = lay(x.to(device), layout)
    if "dtype" in arguments:
        arguments["dtype"] = dtype
    inputs = Inputs(op, dtype, arguments, tuple(leaves if case.backward else ()))
    for name, x in _call(op.reference, inputs)[0].items():
        if x.requires_grad:
            grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            inputs.grads[name] = lay(grad.to(x.dtype).to(device), grad_layout)
    return inputs


def lay(x: Tensor, layout: str) -> Tensor:
    """Lay out in memory; what needs more axes than there are stays as it is."""
    if layout == "sum":
        return x.new_tensor(0.7).expand(x.shape)
    needed = {"contiguous": 0, "sliced": 0, "stepped": 1, "expanded": 1}
    return LAYOUTS[layout](x) if x.dim() >= needed.get(layout, 2) else x


def _call(
    function: Callable[..., Any], inputs: Inputs, **options: Any
) -> tuple[Results, list[Tensor]]:
    """Outputs by name, and the leaves that they come from."""
    leaves = {name: inputs.arguments[name].detach().requires_grad_() for name in inputs.leaves}
    outputs = function(**(inputs.arguments | leaves | options))
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return dict(zip(inputs.op.outputs, outputs, strict=True)), [*leaves.values()]


def run(function: Callable[..., Any], inputs: Inputs, **options: Any) -> Results:
    """Outputs of a function, and the gradients of `inputs.leaves`."""
    outputs, leaves = _call(function, inputs, **options)
    results = {name: x.detach() for name, x in outputs.items()}
    if leaves:
        grads = torch.autograd.grad(
            [outputs[name] for name in inputs.grads],
            leaves,
            [grad.to(outputs[name].dtype) for name, grad in inputs.grads.items()],
            materialize_grads=True,
        )
        results |= {f"grad {name}": g for name, g in zip(inputs.leaves, grads, strict=True)}
    return results


def exact_arguments(arguments: Arguments) -> Arguments:
    """The same numbers in float64; bytes, which ops divide by 255, are divided here."""

    def exact(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype == torch.uint8:
            return x.double() / 255
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.double()
        return torch.float64 if isinstance(x, torch.dtype) else x

    return {name: exact(x) for name, x in arguments.items()}


def run_exact(inputs: Inputs) -> Results:
    """The reference in float64."""
    return run(inputs.op.reference, replace(inputs, arguments=exact_arguments(inputs.arguments)))


def run_eager(inputs: Inputs) -> Results:
    """The reference in the dtypes of the inputs; in bf16 where fp16 overflows in it."""
    results = run(inputs.op.reference, inputs)
    if all(bool(x.isfinite().all()) for x in results.values()):
        return results
    half = {
        name: x.bfloat16() if isinstance(x, Tensor) and x.dtype == torch.float16 else x
        for name, x in inputs.arguments.items()
    }
    wide = run(inputs.op.reference, replace(inputs, arguments=half))
    return {name: x.to(results[name].dtype) for name, x in wide.items()}


def run_backend(inputs: Inputs, backend: str) -> Results:
    """The public op."""
    return run(inputs.op.function, inputs, backend=backend)


def check(inputs: Inputs, fused: Results, factor: float | None = None) -> None:
    """Hold a backend's results to the rule at the top of this file.

    Args:
        inputs: of the call.
        fused: its results.
        factor: times the error of eager and half a rounding; the op's by default. A search for
            bad shapes takes 8: it finds the tail of two distributions of rounding errors.
    """
    exact, eager = run_exact(inputs), run_eager(inputs)
    assert set(fused) == set(exact)
    for name, ours in fused.items():
        assert ours.shape == exact[name].shape and ours.dtype == eager[name].dtype, name
        if not ours.is_floating_point():
            assert torch.equal(ours, eager[name]), name
        elif ours.numel():
            limits = torch.finfo(ours.dtype)
            wanted = exact[name].clamp(limits.min, limits.max)  # a true overflow is infinite
            rounding = torch.finfo(inputs.dtype).eps if inputs.op.products else limits.eps
            size = float(wanted.abs().max())
            times = factor or inputs.op.factor
            bound = times * (_error(eager[name], wanted) + rounding / 2 * size) + limits.eps**2
            error = _error(ours, wanted)
            assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g}"


def _error(x: Tensor, exact: Tensor) -> float:
    limits = torch.finfo(x.dtype)
    return float((x.double().clamp(limits.min, limits.max) - exact).abs().max())
