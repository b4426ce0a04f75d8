"""Training on several processes (torchrun): who this process is, and what they do together.

Without torchrun everything here is the case of one process. Gradients are averaged after the
backward, in one flat tensor a dtype: the models are small, and any module can be trained so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

_alone = False  # while the first process trains by itself

# The others wait that long for the first one to build data or to train by itself.
_PATIENCE = timedelta(days=7)


def rank() -> int:
    """This process, 0 ... world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main_process() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, if it did, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process runs the block before the others do; then all of them go on."""
    if world_size() > 1 and not is_main_process():
        dist.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and is_main_process():
            dist.barrier()


@contextmanager
def main_process_alone() -> Iterator[bool]:
    """The block is the first process's alone, which is as if started alone; the others wait.

    Yields:
        Whether this is the first process.
    """
    global _alone
    if world_size() == 1 or not is_main_process():
        yield is_main_process()
    else:
        _alone = True
        try:
            yield True
        finally:
            _alone = False
    barrier()


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        dist.barrier()


def broadcast(value: str) -> str:
    """The first process's text, on all of them."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean(value: Tensor) -> float:
    """Mean of a number over the processes; NaN on one is NaN on all."""
    if world_size() == 1:
        return float(value.detach())
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, which all have the same parameters.

    A parameter without a gradient here counts as zero, as another process may have one.
    """
    if world_size() == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in groups.values():
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))
