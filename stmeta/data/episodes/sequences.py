"""Algorithmic tasks that need a memory (Graves et al. 2014, sections 4.1 to 4.3).

Every batch is a pure function of (seed, number). Sequences of a batch differ in length: the shorter
ones are padded with zeros, and only the steps of the answer are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stmeta._util.hashing import hash64
from stmeta.data.loading.resume import ResumableLoader


class TaskBatch(NamedTuple):
    """B sequences of up to T steps."""

    x: Tensor
    """float32 [B, T, in]."""
    target: Tensor
    """float32 [B, T, out] of 0 and 1; 0 wherever `mask` is False."""
    mask: Tensor
    """bool [B, T]: the steps that are scored."""
    lengths: Tensor
    """int64 [B]: steps of each sequence; what follows is padding."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TaskBatch:
        """Return the batch with its tensors on `device`."""
        return TaskBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def copy_task(
    number: int,
    *,
    batch_size: int = 16,
    bits: int = 8,
    max_length: int = 20,
    min_length: int = 1,
    seed: int = 0,
) -> TaskBatch:
    """Say a sequence again (Graves et al. 2014, section 4.1).

    Steps of a sequence of n vectors: n vectors | delimiter, alone on channel `bits` | n steps of
    zeros, in which the vectors are the target.

    Args:
        number: of the batch.
        batch_size: B.
        bits: width of a vector. in = bits + 1, out = bits.
        max_length: most vectors in a sequence; longer ones than in training test generalisation.
        min_length: fewest vectors.
        seed: other seeds give other batches.

    Raises:
        ValueError: a size is below 1, or the shortest is longer than the longest.
    """
    _check("copy_task", batch_size, bits, length=(min_length, max_length))
    random = _random(seed, number)
    count = random.integers(min_length, max_length + 1, batch_size)
    vectors = random.integers(0, 2, (batch_size, max_length, bits))
    lengths = 2 * count + 1
    x, target, mask = _blank(lengths, bits + 1, bits)
    for row, n in enumerate(count):
        x[row, :n, :bits] = vectors[row, :n]
        x[row, n, bits] = 1
        target[row, n + 1 : 2 * n + 1] = vectors[row, :n]
        mask[row, n + 1 : 2 * n + 1] = True
    return _batch(x, target, mask, lengths)


def repeat_copy_task(
    number: int,
    *,
    batch_size: int = 16,
    bits: int = 8,
    max_length: int = 10,
    min_length: int = 1,
    max_repeats: int = 10,
    min_repeats: int = 1,
    scale_repeats: tuple[int, int] | None = None,
    seed: int = 0,
) -> TaskBatch:
    """Say a sequence again a number of times, then say that it is over (section 4.2).

    Steps for n vectors and r repeats: n vectors | delimiter on channel `bits` and the normalised r
    on channel bits + 1 | n·r steps of zeros, in which the repeated vectors are the target | one
    step of zeros, whose target is the end marker on output channel `bits`. The delimiter is not in
    the paper: without it, the r in the middle of an odd range would be a step of zeros.

    Args:
        number: of the batch.
        batch_size: B.
        bits: width of a vector. in = bits + 2, out = bits + 1.
        max_length: most vectors in a sequence.
        min_length: fewest vectors.
        max_repeats: most repeats.
        min_repeats: fewest repeats.
        scale_repeats: (fewest, most) repeats that get mean 0 and variance 1; None = those of this
            batch. To test with more repeats than in training, give the range of the training.
        seed: other seeds give other batches.

    Raises:
        ValueError: a size is below 1, or the least of a range is above its most.
    """
    low, high = scale_repeats or (min_repeats, max_repeats)
    _check(
        *("repeat_copy_task", batch_size, bits),
        length=(min_length, max_length),
        repeats=(min_repeats, max_repeats),
        scale_repeats=(low, high),
    )
    random = _random(seed, number)
    count = random.integers(min_length, max_length + 1, batch_size)
    repeats = random.integers(min_repeats, max_repeats + 1, batch_size)
    vectors = random.integers(0, 2, (batch_size, max_length, bits))
    deviation = (((high - low + 1) ** 2 - 1) / 12) ** 0.5 or 1.0  # of a uniform whole number
    lengths = count + 1 + count * repeats + 1
    x, target, mask = _blank(lengths, bits + 2, bits + 1)
    for row, (n, r) in enumerate(zip(count, repeats, strict=True)):
        x[row, :n, :bits] = vectors[row, :n]
        x[row, n, bits:] = 1, (r - (low + high) / 2) / deviation
        end = n + 1 + n * r
        target[row, n + 1 : end, :bits] = np.tile(vectors[row, :n], (r, 1))
        target[row, end, bits] = 1
        mask[row, n + 1 : end + 1] = True
    return _batch(x, target, mask, lengths)


def associative_recall_task(
    number: int,
    *,
    batch_size: int = 16,
    bits: int = 6,
    item_length: int = 3,
    max_items: int = 6,
    min_items: int = 2,
    seed: int = 0,
) -> TaskBatch:
    """Shown one item of a list, say the next one (section 4.3).

    Steps: for each item a delimiter, alone on channel `bits`, and its vectors | delimiter on
    channel bits + 1 | vectors of the query | the same delimiter | `item_length` steps of zeros, in
    which the item after the query is the target. Items of a list differ from each other.

    Args:
        number: of the batch.
        batch_size: B.
        bits: width of a vector. in = bits + 2, out = bits.
        item_length: vectors in an item.
        max_items: most items in a list.
        min_items: fewest items, at least 2.
        seed: other seeds give other batches.

    Raises:
        ValueError: a size is out of range, or there are too few different items.
    """
    _check("associative_recall_task", batch_size, bits, items=(min_items, max_items))
    if item_length < 1 or min_items < 2 or bits * item_length < 2 * np.log2(max_items):
        raise ValueError(
            "associative_recall_task: item_length must be at least 1, min_items at least 2 and "
            f"2**(bits·item_length) at least max_items**2, got {item_length}, {min_items} and "
            f"2**{bits * item_length} for {max_items} items; make items larger or lists shorter"
        )
    random = _random(seed, number)
    count = random.integers(min_items, max_items + 1, batch_size)
    step = item_length + 1
    lengths = count * step + 2 * step
    x, target, mask = _blank(lengths, bits + 2, bits)
    for row, n in enumerate(count):
        items = _different(random, (n, item_length, bits))
        query = random.integers(0, n - 1)  # the last item has no next one
        items_and_query = np.concatenate([items, items[query : query + 1]])
        # Delimiters and vectors take turns: [n + 1, 1 + item_length, in], one row per item.
        part = x[row, : (n + 1) * step].reshape(n + 1, step, bits + 2)
        part[:, 1:, :bits] = items_and_query
        part[:n, 0, bits] = 1
        part[n, 0, bits + 1] = x[row, (n + 1) * step, bits + 1] = 1
        answer = slice((n + 1) * step + 1, (n + 2) * step)
        target[row, answer] = items[query + 1]
        mask[row, answer] = True
    return _batch(x, target, mask, lengths)


def wrong_bits(logits: Tensor, batch: TaskBatch) -> Tensor:
    """Count the wrong bits of each answer.

    Args:
        logits: [B, T, out], any floating dtype; above 0 = the bit is 1. NaN is wrong.
        batch: what was asked, on the same device.

    Returns:
        float32 [B], over the scored steps.

    Raises:
        ValueError: `logits` has another shape than the target.
    """
    if logits.shape != batch.target.shape:
        raise ValueError(
            f"wrong_bits: logits must be [B, T, out] = {list(batch.target.shape)} like the target, "
            f"got {list(logits.shape)}"
        )
    right = torch.where(batch.target > 0.5, logits > 0, logits <= 0)
    return (~right & batch.mask[..., None]).sum((1, 2)).float()


class TaskLoader(ResumableLoader):
    """Delivers the batches of a task, epoch after epoch, with exact resume.

    Like the other loaders, it yields to the end of the epoch and then stands at the start of the
    next one, whose batches are new.
    """

    def __init__(self, task: Callable[[int], TaskBatch], *, batches: int) -> None:
        """Serve a task.

        Args:
            task: makes batch `number`, such as `functools.partial(copy_task, bits=8, seed=1)`.
            batches: batches in an epoch.

        Raises:
            ValueError: `batches` is below 1.
        """
        if batches < 1:
            raise ValueError(f"TaskLoader: batches must be at least 1, got {batches}")
        self.task, self.batches = task, batches

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        """Yield batches from the current position to the end of the epoch."""
        epoch = self._epoch
        while self._epoch == epoch:
            batch = self.task(epoch * self.batches + self._position)
            self._advance()
            yield batch


def _check(task: str, batch_size: int, bits: int, **ranges: tuple[int, int]) -> None:
    if batch_size < 1 or bits < 1:
        raise ValueError(
            f"{task}: batch_size and bits must be at least 1, got {batch_size} and {bits}"
        )
    for name, (low, high) in ranges.items():
        if not 1 <= low <= high:
            raise ValueError(f"{task}: {name} must satisfy 1 <= min <= max, got {low} and {high}")


def _random(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(hash64(seed, number)))


def _blank(lengths: np.ndarray, inputs: int, outputs: int) -> tuple[np.ndarray, ...]:
    rows, steps = len(lengths), int(lengths.max())
    x = np.zeros((rows, steps, inputs), np.float32)
    return x, np.zeros((rows, steps, outputs), np.float32), np.zeros((rows, steps), bool)


def _batch(x: np.ndarray, target: np.ndarray, mask: np.ndarray, lengths: np.ndarray) -> TaskBatch:
    arrays = (x, target, mask, lengths.astype(np.int64))
    return TaskBatch(*(torch.from_numpy(array) for array in arrays))


def _different(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Random bits [n, ...] of which no two are the same."""
    while True:
        items = random.integers(0, 2, shape)
        if len(np.unique(items.reshape(shape[0], -1), axis=0)) == shape[0]:
            return items
