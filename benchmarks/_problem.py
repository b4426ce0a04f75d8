"""An op on one set of inputs, and the ways to run it: eager, torch.compile, CUDA graph, fused."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stmeta.ops import availability

GRAPH = "cuda-graph"  # what a way is called that is recorded, with its backend before it
FUSED = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}  # backends worth timing on a device


@dataclass(frozen=True, kw_only=True)
class Call:
    """One way to run a problem.

    `forward` gives what `backward` takes. Ops without a gradient have no `backward`.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], Any] | None = None


@dataclass(kw_only=True)
class Problem:
    """An op on inputs. Functions take `arguments` by name and give a tensor or a tuple of tensors.

    The leaves are the tensors of `arguments` that require a gradient. Gradients of the results are
    drawn once, so that every way gets the same.

    Args:
        eager: the best that a person would write in plain PyTorch.
        fused: the op, which takes `backend` too.
        arguments: tensors, options, and lists or dicts of them.
        compiled: what torch.compile makes of `eager`, where it is not all of it.
        reads: bytes that the forward must read; None = the tensors of `arguments`.
        saves: bytes of inputs that the backward must read again; None = those of the forward.
    """

    eager: Callable[..., Any]
    fused: Callable[..., Any]
    arguments: dict[str, Any]
    compiled: Callable[[dict[str, Any]], Callable[..., Any]] | None = None
    reads: int | None = None
    saves: int | None = None
    leaves: list[Tensor] = field(init=False)
    grads: list[Tensor] = field(init=False)
    moved: dict[str, int] = field(init=False)  # bytes of each pass

    def __post_init__(self) -> None:
        tensors = [x for x in tree_leaves(self.arguments) if isinstance(x, Tensor)]
        self.leaves = [x for x in tensors if x.requires_grad]
        results = _tuple(self.eager(**self.arguments))
        self.grads = [torch.randn_like(x) for x in results if x.requires_grad]
        reads = size(tensors) if self.reads is None else self.reads
        forward = reads + size(results)
        backward = (reads if self.saves is None else self.saves) + size(self.grads + self.leaves)
        self.moved = {"forward": forward, "backward": backward, "both": forward + backward}

    def ways(self, op: str, device: str) -> tuple[dict[str, Callable[[], Call]], dict[str, str]]:
        """How to set up each way, by name; and why others are left out, by name.

        Setting up is lazy because it may compile, or fail.
        """
        ways = {
            "eager": lambda: self._call(self.eager),
            "compile": lambda: self._call(self._compile(dynamic=False)),
        }
        if device == "cuda":
            ways["reduce-overhead"] = self._reduce_overhead
            ways[GRAPH] = lambda: self._graph(self.eager)
        missing = availability(op)
        left_out = {name: missing[name] for name in FUSED[device] if missing[name]}
        for name in FUSED[device]:
            if name not in left_out:
                ways[name] = lambda name=name: self._call(self.fused, backend=name)
                if device == "cuda":
                    ways[f"{name}, {GRAPH}"] = lambda name=name: self._graph(
                        self.fused, backend=name
                    )
        return ways, left_out

    def _call(self, function: Callable[..., Any], **options: Any) -> Call:
        arguments = {**self.arguments, **options}
        if not self.leaves:
            return Call(forward=lambda: function(**arguments))

        def forward() -> list[Tensor]:
            return [x for x in _tuple(function(**arguments)) if x.requires_grad]

        return Call(forward=forward, backward=self._backward)

    def _backward(self, results: list[Tensor], **options: Any) -> Any:
        return torch.autograd.grad(results, self.leaves, self.grads, **options)

    def _compile(self, **options: Any) -> Callable[..., Any]:
        if self.compiled is not None:
            return self.compiled(options)
        return torch.compile(self.eager, **options)

    def _reduce_overhead(self) -> Call:
        call = self._call(self._compile(dynamic=False, mode="reduce-overhead"))

        def forward() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return call.forward()

        return Call(forward=forward, backward=call.backward)

    def _graph(self, function: Callable[..., Any], **options: Any) -> Call:
        """Recorded once, as two CUDA graphs."""
        call = self._call(function, **options)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and workspaces
            for _ in range(3):
                results = call.forward()
                if call.backward:
                    call.backward(results)
        torch.cuda.current_stream().wait_stream(side)
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(first):
            results = call.forward()
        if not call.backward:
            return Call(forward=lambda: (first.replay(), results)[1])
        with torch.cuda.graph(second, pool=first.pool()):
            gradients = self._backward(results, retain_graph=True)
        return Call(
            forward=lambda: (first.replay(), results)[1],
            backward=lambda _: (second.replay(), gradients)[1],
        )


def find(op: str) -> Any:
    """The module of an op's benchmark, <room>/bench_<op>.py."""
    (path,) = Path(__file__).parent.glob(f"*/bench_{op}.py")
    return importlib.import_module(f"benchmarks.{path.parent.name}.{path.stem}")


def _tuple(results: Any) -> Sequence[Tensor]:
    return (results,) if isinstance(results, Tensor) else results


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)
