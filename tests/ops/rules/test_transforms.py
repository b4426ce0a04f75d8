"""torch.func and forward-mode differentiation through every op, against plain reverse mode.

The truth is the Jacobian of eager in float64, row by row; the ops run in fp32 with "auto".
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from stmeta._errors import BackendUnavailableError
from stmeta.ops import availability, masking_from_keep, random_masking
from tests.ops._harness.derivatives import CALLS, Call

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
SMALL = {name: call for name, call in CALLS.items() if name != "locality_attention-170"}
every_small_call = pytest.mark.parametrize("call", SMALL.values(), ids=SMALL)
STEPS = {name: call for name, call in CALLS.items() if "scan" not in name}
truths: dict[str, Tensor] = {}


def jacobian(call: Call) -> Tensor:
    """[results, leaves] in float64."""
    if call.name not in truths:
        start = call.start(torch.float64)
        truths[call.name] = torch.autograd.functional.jacobian(
            lambda x: call.at(x, backend="eager"), start
        )
    return truths[call.name]


def some(count: int) -> Tensor:
    """Numbers of either sign; random ones are not for vmap."""
    return (torch.arange(count) * 12.9898 + 1).sin()


def near(ours: Tensor, exact: Tensor) -> None:
    assert ours.shape == exact.shape
    assert float(exact.abs().max()) > 0
    error = float((ours.double() - exact).abs().max())
    assert error <= 1e-4 * float(exact.abs().max()), error


def loss(call: Call, x: Tensor) -> Tensor:
    out = call.at(x)
    return (out.sin() * some(len(out)).to(out.dtype)).sum()


@every_call
def test_jvp(call):
    start = call.start(torch.float32)
    tangent = some(len(start))
    exact = jacobian(call) @ tangent.double()
    value, result = torch.func.jvp(call.at, (start,), (tangent,))
    near(result, exact)
    near(value, call.at(start.double()))
    with forward_ad.dual_level():
        dual = call.at(forward_ad.make_dual(start, tangent))
        near(forward_ad.unpack_dual(dual).tangent, exact)


@every_call
def test_vjp(call):
    start = call.start(torch.float32)
    value, pull = torch.func.vjp(call.at, start)
    grad = some(len(value))
    near(pull(grad)[0], grad.double() @ jacobian(call))


@every_call
def test_grad(call):
    exact = call.start(torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(loss(call, exact), exact)
    near(torch.func.grad(lambda x: loss(call, x))(call.start(torch.float32)), grad)


@every_small_call
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobian(call, transform):
    near(transform(call.at)(call.start(torch.float32)), jacobian(call))


@every_call
def test_hessian(call):
    """Along six directions that mix all leaves."""
    start = call.start(torch.float64)
    mixed = some(6 * len(start)).view(-1, 6)

    def function(x: Tensor) -> Tensor:
        return loss(call, start.to(x.dtype) + mixed.to(x.dtype) @ x)

    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        exact = torch.autograd.functional.hessian(function, torch.zeros(6, dtype=torch.float64))
    near(torch.func.hessian(function)(torch.zeros(6)), exact)


@pytest.mark.parametrize("make", ["vmap of a call", "completed"])
def test_masks_of_each_sample(make):
    if make == "completed":
        ids = torch.tensor([[[3, 0], [1, 2]], [[2, 1], [0, 3]]])
        masks = torch.vmap(lambda ids: masking_from_keep(ids, 4))(ids)
        expected = [masking_from_keep(rows, 4) for rows in ids]
        for found, *wanted in zip(masks, *expected, strict=True):
            assert torch.equal(found, torch.stack(wanted))
        return
    draw = torch.vmap(lambda _: random_masking(2, 8, 0.5), randomness="different")
    masks = draw(torch.zeros(5))
    assert masks.mask.shape == (5, 2, 8)
    assert (masks.mask.sum(2) == 4).all() and not (masks.mask == masks.mask[:1]).all()


@every_call
def test_gradient_of_each_sample(call):
    """vmap(grad), every sample on its own, against one sample after the other."""
    arguments = {
        name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in call.arguments.items()
    }
    batched = {name: arguments[name] for name in call.batched()}
    shared = {name: arguments[name] for name in call.leaves if name in call.shared}

    def of_one(shared: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
        one = {name: x[None] for name, x in sample.items()}
        out = call.run(shared | one, torch.float32)
        return (out * some(len(out))).sum()

    def of_leaves(leaves: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
        mine = {name: leaves[name] for name in leaves if name in call.shared}
        rest = {name: leaves[name] for name in leaves if name not in call.shared}
        return of_one(mine, others | rest)

    moving = {name: x for name, x in batched.items() if name in call.leaves}
    others = {name: x for name, x in batched.items() if name not in call.leaves}
    each = torch.func.grad(of_leaves)
    axes = ({name: None for name in shared} | {name: 0 for name in moving}, 0 if others else None)
    ours = torch.func.vmap(each, in_dims=axes)(shared | moving, others)
    for index in range(len(next(iter(batched.values())))):
        leaves = {name: x[index].double() for name, x in moving.items()}
        leaves |= {name: x.double() for name, x in shared.items()}
        for x in leaves.values():
            x.requires_grad_()
        value = of_leaves_in_double(call, leaves, {name: x[index] for name, x in others.items()})
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for name, grad in zip(leaves, grads, strict=True):
            if float(grad.abs().max()) > 0:
                near(ours[name][index], grad)
            else:
                assert not ours[name][index].any()


def of_leaves_in_double(call: Call, leaves: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
    everything = {name: x if name in call.shared else x[None] for name, x in leaves.items()}
    out = call.run(everything | {k: x[None] for k, x in others.items()}, torch.float64)
    return (out * some(len(out)).double()).sum()


@every_call
def test_a_named_backend_says_so(call):
    """It never falls back, and gives no zeros."""
    if availability(call.op.__name__)["cpu"]:
        pytest.skip(availability(call.op.__name__)["cpu"])
    start = call.start(torch.float32)
    message = f"{call.op.__name__}: backend 'cpu' cannot run: .* pass backend='eager'"

    def function(x: Tensor) -> Tensor:
        return call.at(x, backend="cpu")

    for transformed in (
        lambda: torch.func.jvp(function, (start,), (start,)),
        lambda: torch.func.vjp(function, start),
        lambda: torch.func.vmap(function)(start[None]),
    ):
        with pytest.raises(BackendUnavailableError, match=message):
            transformed()
    with forward_ad.dual_level(), pytest.raises(BackendUnavailableError, match=message):
        function(forward_ad.make_dual(start, start))


def test_transforms_within_compile():
    """Traced as a whole, and the plain call beside it stays the kernel's."""
    call = CALLS["erase_add"]
    torch.compiler.reset()
    start = call.start(torch.float32)

    def both(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, forward = torch.func.jvp(call.at, (x,), (x,))
        return call.at(x), forward, torch.func.grad(lambda x: loss(call, x))(x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(start)
    for ours, exact in zip(compiled, both(start.double()), strict=True):
        near(ours, exact)


def product_with_hessian(call: Call, x: Tensor, **options: str) -> tuple[Tensor, Tensor]:
    """Gradient of the loss, and its derivative along some direction: two backwards."""
    x = x.requires_grad_()
    out = call.at(x, **options)
    value = (out.sin() * some(len(out)).to(out.dtype)).sum()
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(grad @ some(len(x)).to(x.dtype), x)
    return grad.detach(), second


every_step = pytest.mark.parametrize("call", STEPS.values(), ids=STEPS)


@every_step
def test_second_derivative(call):
    """`create_graph=True`: from the kernel's forward on, all is eager's."""
    with sdpa_kernel(SDPBackend.MATH):
        exact = product_with_hessian(call, call.start(torch.float64), backend="eager")
    for ours, truth in zip(
        product_with_hessian(call, call.start(torch.float32)), exact, strict=True
    ):
        near(ours, truth)


@pytest.mark.parametrize("name", ["lrua_scan", "lrua_scan-lengths", "ntm_scan"])
def test_scans_have_no_second_derivative(name):
    """They keep too little for it, and say so."""
    call = CALLS[name]
    message = f"{call.op.__name__}: the fused op has no second derivative; use backend='eager'"
    with pytest.raises(NotImplementedError, match=message):
        product_with_hessian(call, call.start(torch.float32))
    start = call.start(torch.float32).requires_grad_()
    out = call.at(start)
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(out, start, torch.eye(len(out))[:2], is_grads_batched=True)
    product_with_hessian(call, call.start(torch.float32), backend="eager")


@every_step
def test_batches_of_gradients(call):
    """`is_grads_batched`, as `torch.autograd.functional.jacobian(vectorize=True)` uses it."""
    start = call.start(torch.float32).requires_grad_()
    out = call.at(start)
    rows = min(len(out), 4)
    grads = torch.eye(len(out))[:rows]
    (ours,) = torch.autograd.grad(out, start, grads, is_grads_batched=True)
    near(ours, jacobian(call)[:rows])


@every_step
def test_gradient_with_a_tangent(call):
    """Of a forward from before the level: the backward is linear in the gradient."""
    start = call.start(torch.float32).requires_grad_()
    out = call.at(start)
    grad = some(len(out))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.zeros_like(grad), grad)
        (ours,) = torch.autograd.grad(out, start, dual)
        tangent = forward_ad.unpack_dual(ours).tangent
        assert tangent is not None
        near(tangent, grad.double() @ jacobian(call))
