"""Floating point operations of the fused ops, for `torch.utils.flop_counter.FlopCounterMode`.

As torch does, only matrix products count, two operations for each multiplication, and all that
eager would multiply for a gradient of every input; so a count does not depend on the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from stmeta.ops._core.torch_private import dispatch_modes

Shape = tuple[int, ...]


def _embed(video: Shape, *rest: Any, out_shape: Any) -> int:
    weight = rest[3]
    return 2 * prod(out_shape[0]) * weight[1]


def _embed_backward(grad: Shape, *rest: Any, out_shape: Any) -> int:
    weight, needs = rest[4], rest[-1]
    products = needs[2] + (needs[0] or needs[1])  # of the weight; of the tokens, for the LayerNorm
    return 2 * products * prod(grad) * weight[1]


def _attention(qkv: Shape, *rest: Any, out_shape: Any) -> int:
    batch, tokens, _, heads, width = qkv
    return 4 * batch * heads * tokens**2 * width


def _look(memory: Shape, other: Shape, *rest: Any, out_shape: Any) -> int:
    """One product of a memory [B, N, M] with the [B, H, ...] of its heads."""
    return 2 * prod(memory) * other[1]


def _ntm_step(memory: Shape, previous: Shape, *rest: Any, out_shape: Any) -> int:
    """Heads compare, W of them write, R read."""
    erase, reads = rest[5], rest[-3]
    return 2 * prod(memory) * (previous[1] + erase[1] + reads)


def _lrua_step(memory: Shape, usage: Shape, previous: Shape, *rest: Any, out_shape: Any) -> int:
    return 6 * prod(memory) * previous[1]


def _backward(forward: Callable[..., int], skip: int) -> Callable[..., int]:
    """Of each product, one for each factor; the forward's arguments begin after `skip` others."""

    def count(*shapes: Any, out_shape: Any) -> int:
        return 2 * forward(*shapes[skip:], out_shape=None)

    return count


def _controller(gates: Shape, recurrent: Shape, interface: Shape) -> int:
    """Products of the controller with its weights, over all steps."""
    return 2 * gates[0] * gates[1] * (prod(recurrent) + prod(interface))


def _memory_scan(gates: Shape, *rest: Any, out_shape: Any) -> int:
    _, _, recurrent, interface, _, memory, _, previous = rest[:8]
    steps = 6 * gates[1] * prod(memory) * previous[1]
    return _controller(gates, recurrent, interface) + steps


def _memory_scan_backward(*rest: Any, out_shape: Any) -> int:
    """Without the gradients of the weights, which are products of torch."""
    recurrent, interface, memory, previous, gates = (rest[k] for k in (5, 6, 7, 8, 11))
    steps = 12 * gates[1] * prod(memory) * previous[1]
    return _controller(gates, recurrent, interface) + steps


def _ntm_scan(gates: Shape, *rest: Any, out_shape: Any) -> int:
    recurrent, interface, _, memory, weights, reads = rest[:6]
    steps = gates[1] * _of_ntm(memory, weights, reads)
    return _controller(gates, recurrent, interface) + steps


def _ntm_scan_backward(grad_y: Shape, *rest: Any, out_shape: Any) -> int:
    memory, recurrent, interface, weights, c, gates = (rest[k] for k in (0, 3, 4, 5, 6, 8))
    reads = (grad_y[0], grad_y[2] - c[1])
    steps = 2 * gates[1] * _of_ntm(memory, weights, reads)
    return _controller(gates, recurrent, interface) + steps


def _of_ntm(memory: Shape, weights: Shape, reads: Shape) -> int:
    """A step: R + W heads compare, W write, R read."""
    return 4 * prod(memory) * weights[1]


FORMULAS: dict[str, Callable[..., int]] = {
    "shifted_patch_embed": _embed,
    "shifted_patch_embed_backward": _embed_backward,
    "locality_attention": _attention,
    "locality_attention_backward": _backward(_attention, 1),
    "content_addressing": _look,
    "content_addressing_backward": _backward(_look, 1),
    "memory_read": _look,
    "memory_read_backward": _backward(_look, 1),
    "erase_add": _look,
    "erase_add_backward": _backward(_look, 1),
    "ntm_step": _ntm_step,
    "ntm_step_backward": _backward(_ntm_step, 3),
    "lrua_step": _lrua_step,
    "lrua_step_backward": lambda *s, out_shape: 12 * prod(s[3]) * s[4][1],
    "memory_scan": _memory_scan,
    "memory_scan_backward": _memory_scan_backward,
    "memory_scan_lean": _memory_scan,
    "memory_scan_lean_backward": _memory_scan_backward,
    "ntm_scan": _ntm_scan,
    "ntm_scan_backward": _ntm_scan_backward,
}


def tell_counters() -> None:
    """Give the formulas to torch's registry, and to counters that have copied it already.

    Called where a dispatch mode is on: to import the counter with the ops would import Triton.
    """
    counting: Any = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    counters = [mode.counter for mode in dispatch_modes() if hasattr(mode, "counter")]
    for namespace in (torch.ops.stmeta, torch.ops.stmeta_triton):
        for name, formula in FORMULAS.items():
            op = getattr(namespace, name, None)
            if op is None:  # there is no lean op of Triton
                continue
            if op not in counting.flop_registry:
                counting.register_flop_formula(op)(formula)
            for counter in counters:
                counter.flop_registry.setdefault(op, counting.flop_registry[op])
