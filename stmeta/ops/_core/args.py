"""Checks of arguments that ops share: shapes against letters, dtypes, devices, token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from stmeta.ops._core.torch_private import transform, unwrapped

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_shapes(op: str, **arguments: tuple[Tensor, str]) -> dict[str, int]:
    """Check shapes like "B H N", where a letter means the same size everywhere.

    Args:
        op: name of the op, for the error.
        arguments: name -> (tensor, its letters); the first one is what the others must match, in
            shape and in device.

    Returns:
        Letter -> size.

    Raises:
        ValueError: a shape or a device does not fit.
    """
    sizes: dict[str, int] = {}
    first = next(iter(arguments))
    for name, (tensor, _) in arguments.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(_not_dense(op, name, tensor))
    device = arguments[first][0].device
    for name, (tensor, axes) in arguments.items():
        letters = axes.split()
        shape = tensor.shape
        if len(shape) != len(letters) or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, shape, strict=True)
        ):
            raise ValueError(_misfit(op, name, arguments))
        if tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on {first}'s device {device}, got {tensor.device}; "
                f"use .to({first}.device)"
            )
    return sizes


def check_dense(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless each is a dense tensor, neither sparse nor nested."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise ValueError(_not_dense(op, name, x))


def check_optional(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless each is None or a dense tensor."""
    check_dense(op, **{name: x for name, x in tensors.items() if x is not None})


def _not_dense(op: str, name: str, x: object) -> str:
    if not isinstance(x, Tensor):
        return f"{op}: {name} must be a tensor, got {type(x).__name__}"
    return f"{op}: {name} must be dense, got {x.layout}; use {name}.to_dense()"


def _misfit(op: str, subject: str, arguments: dict[str, tuple[Tensor, str]]) -> str:
    sizes: dict[str, int] = {}  # as far as the arguments before the subject tell
    first = next(iter(arguments))
    for name, (tensor, axes) in arguments.items():
        if name == subject:
            break
        sizes.update(zip(axes.split(), tensor.shape, strict=True))
    shape, letters = list(arguments[subject][0].shape), arguments[subject][1].split()
    rule = f"{op}: {subject} must be [{', '.join(letters)}]"
    if subject == first:
        return f"{rule}, got {shape}"
    wanted = [sizes.get(letter) for letter in letters]
    text = ", ".join(
        letter if size is None else str(size) for letter, size in zip(letters, wanted, strict=True)
    )
    message = f"{rule} = [{text}] to match {first} {list(arguments[first][0].shape)}, got {shape}"
    swapped = [*shape[:-2], *shape[:-3:-1]]
    fits = len(shape) == len(letters) > 1 and all(
        size in (None, other) for size, other in zip(wanted, swapped, strict=True)
    )
    return message + ("; did you swap the last two axes?" if fits else "")


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` has a floating dtype that ops know."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} must be fp32, bf16, fp16 or fp64, got {tensor.dtype}; use .float()"
        )


def single_or(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    """The tensor, in fp32 unless it is in `dtype`: what kernels take beside rows in `dtype`."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.float()


def same_dtype(op: str, subject: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the dtype of the first one, `subject`: memory ops have one dtype."""
    dtype = tensors[0].dtype
    check_float(op, subject, tensors[0])
    return tuple(x if x.dtype == dtype else x.to(dtype) for x in tensors)


def check_ids(op: str, name: str, ids: Tensor, count: int) -> None:
    """Raise ValueError unless `ids` is int64 [B, K] with values in [0, count).

    Values are looked at where that is cheap and possible: not on a GPU, not while tracing.
    """
    if ids.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be int64, got {ids.dtype}; use .long()")
    low, high = bounds(ids)
    if low < 0 or high >= count:
        raise ValueError(
            f"{op}: {name} must have values in [0, {count}), got values from {low} to {high}"
        )


def bounds(integers: Tensor) -> tuple[int, int]:
    """Least and largest value; (0, -1) where a look is impossible or would wait for a device.

    That is on a GPU, while tracing, and where there are none.
    """
    seen = visible(integers)
    if seen is None:
        return 0, -1
    low, high = torch.aminmax(seen)
    return int(low), int(high)


def repeats(ids: Tensor, count: int, *, complete: bool = False) -> bool:
    """Whether a row of `ids` [B, K] has one of the values below `count` twice.

    With `complete`, also whether a row lacks one. False where a look is impossible or would wait.
    """
    seen = visible(ids)
    if seen is None:
        return False
    found = torch.zeros(seen.shape[0], count + 1, dtype=torch.bool, device=seen.device)
    found.scatter_(1, seen.clamp(max=count), True)
    different = int(found[:, :count].sum())
    wanted = seen.shape[0] * count
    return different < int((seen < count).sum()) or (complete and different < wanted)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a kernel's gradient of any of them will be asked for: not within a transform."""
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return recorded and not transform()


def visible(tensor: Tensor) -> Tensor | None:
    """The tensor, if it has values that can be looked at here and now: not on a GPU."""
    if torch.compiler.is_compiling():
        return None
    seen = unwrapped(tensor)
    if type(seen) is not Tensor or seen.device.type != "cpu":
        return None
    return seen if seen.numel() else None
