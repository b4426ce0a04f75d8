"""Valid small calls of every op, and what the dispatcher sees of them, as a ground for bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stmeta.ops import lrua_scan, ntm_scan, patch_shift, random_masking
from tests.ops._harness import ALL_OPS, load
from tests.ops.scan import test_lrua_scan, test_ntm_scan
from tests.ops.video._patch_shift_cases import CASES as PATCH_CASES
from tests.ops.video._patch_shift_cases import make_inputs as make_patch_inputs

Arguments = dict[str, Any]


@dataclass
class Call:
    """A public function and keyword arguments that fit it: tensors in fp32, and plain options."""

    function: Callable[..., Any]
    arguments: Arguments
    outputs: int = 1


def valid_calls() -> dict[str, Call]:
    """One call of each public op, all of whose sizes differ where the op lets them."""
    calls = {}
    for name in ALL_OPS:
        op = load(name)
        arguments = op.tiny.make(torch.Generator().manual_seed(0))
        calls[name] = Call(op.function, {k: _single(x) for k, x in arguments.items()})
    calls["random_masking"] = Call(random_masking, {"batch": 2, "tokens": 12, "ratio": 0.7})
    video = make_patch_inputs(PATCH_CASES[0])
    patches = {"video": video.video, "norm_weight": video.weight, "norm_bias": video.bias}
    calls["patch_shift"] = Call(patch_shift, patches | {"ids_keep": video.ids_keep} | video.kwargs)
    scan = test_lrua_scan.make((2, 3, 5, 2, 7, 4), extra=True)
    calls["lrua_scan"] = Call(lrua_scan, {k: x.float() for k, x in scan.items()})
    scan = test_ntm_scan.make((2, 4, 5, 2, 1, 7, 3))
    calls["ntm_scan"] = Call(ntm_scan, {k: x.float() for k, x in scan.items()})
    return calls


def _single(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.float()
    return torch.float32 if isinstance(x, torch.dtype) else x


class Recorder(TorchDispatchMode):
    """Calls of our ops as the dispatcher makes them, autograd's included: name -> arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace.startswith("stmeta"):
            name = function._schema.name.split("::")[1]
            self.calls[name] = tuple(
                x.detach().clone() if isinstance(x, Tensor) else x for x in args
            )
        return function(*args, **(kwargs or {}))


def differentiate(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of the sum of all outputs that have one."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    total = [x.sum() for x in outputs if isinstance(x, Tensor) and x.requires_grad]
    if not total or not leaves:
        return []
    return [*torch.autograd.grad(sum(total), leaves, materialize_grads=True)]


def with_gradients(arguments: Arguments) -> tuple[Arguments, list[Tensor]]:
    """The arguments with floating tensors as leaves, and those."""
    ready = {
        k: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for k, x in arguments.items()
    }
    return ready, [x for x in ready.values() if isinstance(x, Tensor) and x.requires_grad]


def registered_calls(backend: str = "cpu") -> dict[str, tuple]:
    """Arguments of every registered op of a backend, forward and backward."""
    with Recorder() as recorder:
        for call in valid_calls().values():
            ready, leaves = with_gradients(call.arguments)
            differentiate(call.function(**ready, backend=backend), leaves)
            with torch.no_grad():
                call.function(**call.arguments, backend=backend)
        # What torch.compile calls, of an episode; eager training takes the lean ones.
        arguments = recorder.calls["lrua_scan"]
        ready = [x.requires_grad_() if _is_float(x) else x for x in arguments]
        differentiate(torch.ops.stmeta.lrua_scan(*ready)[:5], [x for x in ready if _is_float(x)])
    return recorder.calls


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
