"""Every fused op as a function of one vector, for whatever differentiates functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stmeta.ops import lrua_scan, ntm_scan, patch_shift
from tests.ops._harness import ALL_OPS, Arguments, load
from tests.ops._harness.draw import choice, normal, uniform
from tests.ops.scan import test_lrua_scan, test_ntm_scan
from tests.ops.video import test_locality_attention as locality_attention

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One small call of an op.

    `arguments` has float64 and integer tensors and options; `leaves` are differentiated; those in
    `shared` have no axis of the batch, as weights have none.
    """

    name: str
    op: Callable[..., Any]
    arguments: Arguments
    leaves: tuple[str, ...]
    shared: tuple[str, ...] = ()
    integers: int = 0  # results at the end that have none

    def __repr__(self) -> str:
        return self.name

    def start(self, dtype: torch.dtype) -> Tensor:
        """The vector of all leaves."""
        return torch.cat([self.arguments[name].flatten() for name in self.leaves]).to(dtype)

    def at(self, vector: Tensor, **options: Any) -> Tensor:
        """All floating results as one vector."""
        sizes = [self.arguments[name].numel() for name in self.leaves]
        parts = zip(self.leaves, vector.split(sizes), strict=True)
        leaves = {name: part.view(self.arguments[name].shape) for name, part in parts}
        return self.run(leaves, vector.dtype, **options)

    def run(self, leaves: Arguments, dtype: torch.dtype, **options: Any) -> Tensor:
        """The same of named leaves; all others in `dtype`."""
        others = {
            name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in self.arguments.items()
        }
        out = self.op(**(others | leaves | options))
        out = (out,) if isinstance(out, Tensor) else out[: len(out) - self.integers]
        return torch.cat([x.flatten() for x in out])

    def batched(self) -> list[str]:
        """Names of the tensors with an axis of the batch."""
        return [
            name
            for name, x in self.arguments.items()
            if isinstance(x, Tensor) and name not in self.shared
        ]


def _tiny(name: str) -> Call:
    op = load(name)
    arguments = op.tiny.make(torch.Generator().manual_seed(0))
    leaves = [name for name, x in arguments.items() if _floating(x) and name not in op.constant]
    integers = int("rows" in op.outputs)
    return Call(name, op.function, arguments, tuple(leaves), op.shared, integers)


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _loss_of_a_mask() -> Call:
    call = _tiny("masked_patch_loss")
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(call.arguments["pred"].shape[:2], generator=g) < 0.6
    mask[:, 0] = True
    return Call("masked_patch_loss-mask", call.op, {**call.arguments, "mask": mask}, ("pred",))


def _attention(tokens: int) -> Call:
    g = torch.Generator().manual_seed(0)
    arguments = locality_attention.make(g, 2, tokens, 2, 2)
    return Call(
        f"locality_attention-{tokens}",
        locality_attention.OP.function,
        arguments,
        ("qkv", "temperature"),
        ("temperature",),
    )


def _embed(floating: bool) -> Call:
    """Of a constant video, as it is used; or of one in float, which the kernels must not round."""
    g = torch.Generator().manual_seed(0)
    video = uniform(g, 2, 2, 2, 4, 4)
    arguments = {
        "video": video if floating else (255 * video).to(torch.uint8),
        "weight": normal(g, 3, 80) / 9,
        "bias": normal(g, 3),
        "norm_weight": 1 + 0.3 * normal(g, 80),
        "norm_bias": normal(g, 80),
        "pos": normal(g, 4, 3),
        "ids_keep": choice(g, 2, 4, 3),
        "mean": (0.4, 0.5),
        "std": (0.2, 0.3),
        **{"tubelet": 2, "patch": 2},
    }
    shared = ("weight", "bias", "norm_weight", "norm_bias", "pos")
    arguments["dtype"] = None
    name = f"shifted_patch_embed-{'float' if floating else 'bytes'}"
    op = load("shifted_patch_embed").function
    return Call(name, op, arguments, shared, shared)


def _patches(keep: bool) -> Call:
    g = torch.Generator().manual_seed(0)
    arguments = {
        "video": uniform(g, 2, 1, 1, 4, 4),
        "norm_weight": 1 + 0.3 * normal(g, 20),
        "norm_bias": normal(g, 20),
        **{"tubelet": 1, "patch": 2},
        **({"ids_keep": choice(g, 2, 4, 2)} if keep else {}),
    }
    leaves = ("video", "norm_weight", "norm_bias")
    return Call(
        f"patch_shift-{'kept' if keep else 'all'}", patch_shift, arguments, leaves, leaves[1:]
    )


def _lrua_scan(**options: Any) -> Call:
    arguments = test_lrua_scan.make((2, 3, 3, 2, 4, 2), extra=bool(options))
    arguments |= options
    if options:
        arguments["lengths"] = torch.tensor([2, 3])
    leaves = tuple(name for name, x in arguments.items() if _floating(x))
    name = f"lrua_scan{'-lengths' * bool(options)}"
    return Call(name, lrua_scan, arguments, leaves, ("recurrent", "interface", "bias"))


def _ntm_scan() -> Call:
    arguments = test_ntm_scan.make((2, 3, 3, 1, 1, 4, 2)) | {"lengths": torch.tensor([3, 2])}
    leaves = tuple(name for name, x in arguments.items() if _floating(x))
    return Call("ntm_scan", ntm_scan, arguments, leaves, ("recurrent", "interface", "bias"))


CALLS = {
    call.name: call
    for call in (
        *(_tiny(name) for name in ALL_OPS if name not in ("random_masking", "locality_attention")),
        *(_loss_of_a_mask(), _attention(5), _attention(170), _embed(False), _embed(True)),
        *(_patches(False), _patches(True)),
        *(_lrua_scan(), _lrua_scan(shared=True, read_first=False), _ntm_scan()),
    )
}
