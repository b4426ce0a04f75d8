"""Every family under the transforms of `torch.func`, whose plain model is the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.swap._cases import error
from tests.swap._families import FAMILIES, Case
from tests.swap._models import teach

# torch scripts rules of its own for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Function:
    """A family's outputs as a scalar, as a function of some of its parameters.

    The parameters are those of a fused block: its bias, and the first other one.
    """

    def __init__(self, name):
        self.case = Case(name)
        own = dict(self.case.model.named_parameters())
        inside = next(n for n in own if n.endswith("bias"))
        self.names = [inside, next(n for n in own if n != inside)]
        self.start = {n: own[n].detach() for n in self.names}
        self.along = {n: torch.randn_like(x) for n, x in self.start.items()}
        torch.manual_seed(1)
        self.weights: list[Tensor] = []

    def of(self, model):
        def scalar(parameters, *inputs):
            torch.manual_seed(3)  # both draw the same tokens
            result = func.functional_call(model, parameters, inputs or tuple(self.case.inputs))
            if not isinstance(result, Tensor):
                result = result["logits"] if "logits" in result else result[0]
            ramp = torch.linspace(0.5, 1.5, result[0].numel() if result.dim() else 1)
            return (result.flatten(1) * ramp).square().mean() if result.dim() else result.square()

        return scalar

    def bias(self, model):
        """The same as a function of the first three numbers of the bias."""
        name, *_ = self.names
        scalar = self.of(model)

        def of_bias(part):
            rest = self.start[name][3:]
            return scalar({name: torch.cat([part, rest])})

        return of_bias, self.start[name][:3].clone()


def forward_mode(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def per_sample(function, model):
    """The gradient of each sample; a model that counts tokens of a mask has none."""
    scalar = function.of(model)

    def one(parameters, *sample):
        return scalar(parameters, *(x[None] for x in sample))

    gradient = func.vmap(
        func.grad(one), (None, *[0] * len(function.case.inputs)), randomness="same"
    )
    return gradient(function.start, *function.case.inputs)


def of_weights(function, model):
    """Losses of two models at once, as ensembles are run."""
    stacked = {n: torch.stack([x, x + function.along[n]]) for n, x in function.start.items()}
    return func.vmap(function.of(model), randomness="same")(stacked)


def twice(function, model):
    """A second derivative of autograd itself."""
    leaf = dict(model.named_parameters())[function.names[0]]
    (first,) = torch.autograd.grad(function.of(model)({}), leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)


TRANSFORMS = {
    "autograd twice": twice,
    "jvp": lambda f, m: func.jvp(f.of(m), (f.start,), (f.along,)),
    "vjp": lambda f, m: func.vjp(f.of(m), f.start)[1](torch.tensor(1.5)),
    "grad": lambda f, m: func.grad(f.of(m))(f.start),
    "jacrev": lambda f, m: func.jacrev(f.of(m))(f.start),
    "jacfwd": lambda f, m: func.jacfwd(f.bias(m)[0], randomness="same")(f.bias(m)[1]),
    "hessian": lambda f, m: func.jacfwd(func.jacrev(f.bias(m)[0]), randomness="same")(f.bias(m)[1]),
    "forward_ad": lambda f, m: forward_mode(*f.bias(m)),
    "vmap(grad)": per_sample,
    "vmap": of_weights,
}


@pytest.fixture(autouse=True)
def attention():
    """The one kernel of torch's attention that has all derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=FAMILIES)
def function(request, monkeypatch):
    teach(monkeypatch)
    return Function(request.param)


def attempt(transform, function, model):
    """All numbers that it gives, or None where torch cannot."""
    try:
        return torch.utils._pytree.tree_leaves(transform(function, model))
    except (RuntimeError, NotImplementedError):
        return None


def test_transforms(function):
    """Whatever the plain model gives, the fused one gives, and it is the same."""
    held = 0
    for name, transform in TRANSFORMS.items():
        exact = attempt(transform, function, function.case.model)
        if exact is None:
            continue
        found = torch.utils._pytree.tree_leaves(transform(function, function.case.twin))
        assert len(found) == len(exact)
        assert all(error(a, b) <= 1e-5 for a, b in zip(found, exact, strict=True)), name
        assert any(x.abs().max() > 0 for x in exact), name  # forward mode's zeros would pass
        held += 1
    assert held >= 7  # the plain model cannot `vmap` where a mask is counted
