"""Steps of a memory one after the other, as a controller takes them, with inputs of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._problem import Problem, size

Arguments = dict[str, Any]
# (step, state, inputs, options) -> (state, what the step gives); the state goes from step to step
Step = Callable[[Callable[..., Any], tuple[Tensor, ...], Arguments, Arguments], Any]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How to run several steps of an op.

    Args:
        eager: one step in plain PyTorch.
        fused: one step, the op.
        advance: calls a step on a state.
        state: what the first step starts from.
        steps: the other inputs of each step.
        options: the same for all steps.
    """

    eager: Callable[..., Any]
    fused: Callable[..., Any]
    advance: Step
    state: tuple[Tensor, ...]
    steps: list[Arguments]
    options: Arguments

    def problem(self, moved: tuple[int, int]) -> Problem:
        """The whole chain as a problem; `moved` is bytes of one step, forward and backward."""
        problem = Problem(
            eager=self._bind(self.eager),
            fused=self._bind(self.fused),
            compiled=lambda options: self._bind(torch.compile(self.eager, **options)),
            arguments={"state": self.state, "steps": self.steps},
        )
        forward, backward = (bytes_ * len(self.steps) for bytes_ in moved)
        problem.moved = {"forward": forward, "backward": backward, "both": forward + backward}
        return problem

    def _bind(self, step: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
        def run(state: tuple[Tensor, ...], steps: list[Arguments], **options: Any) -> Any:
            reads = []
            for inputs in steps:
                state, read = self.advance(step, state, inputs, {**self.options, **options})
                reads.append(read)
            return (*state, *reads)

        return run


def step_bytes(inputs: list[Tensor], outputs: list[Tensor], kept: list[Tensor]) -> tuple[int, int]:
    """Bytes that one step must move: forward, and backward.

    Args:
        inputs: read by the forward, and again by the backward, which writes their gradients.
        outputs: written by the forward; their gradients are read by the backward.
        kept: outputs that the backward must read too.
    """
    return size(inputs) + size(outputs), 2 * size(inputs) + size(outputs) + size(kept)
