from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from stmeta.data.episodes.sequences import (
    TaskBatch,
    TaskLoader,
    associative_recall_task,
    copy_task,
    repeat_copy_task,
    wrong_bits,
)

TASKS = [copy_task, repeat_copy_task, associative_recall_task]


def sequences(batch: TaskBatch):
    """x [T, in], target [T, out] and mask [T] of each sequence, without its padding."""
    assert batch.x.dtype == batch.target.dtype == torch.float32
    assert batch.mask.dtype == torch.bool and batch.lengths.dtype == torch.int64
    assert batch.x.shape[:2] == batch.target.shape[:2] == batch.mask.shape
    assert batch.lengths.max() == batch.x.shape[1]
    for x, target, mask, length in zip(*batch, strict=True):
        assert not x[length:].any() and not target[length:].any() and not mask[length:].any()
        assert not target[~mask].any()
        yield x[:length].numpy(), target[:length].numpy(), mask[:length].numpy()


def test_copy():
    lengths = []
    for number in range(20):
        for x, target, mask in sequences(copy_task(number, bits=5, max_length=7)):
            assert x.shape[1] == 6 and target.shape[1] == 5
            (delimiter,) = np.flatnonzero(x[:, 5])
            assert x[delimiter].tolist() == [0, 0, 0, 0, 0, 1]
            assert len(x) == 2 * delimiter + 1
            assert not x[delimiter + 1 :].any()
            assert mask.tolist() == [False] * (delimiter + 1) + [True] * delimiter
            np.testing.assert_array_equal(target[mask], x[:delimiter, :5])
            assert set(np.unique(x)) <= {0, 1}
            lengths.append(int(delimiter))
    counts = np.bincount(lengths, minlength=8)
    assert counts[0] == 0 and len(counts) == 8 and counts[1:].min() > 20  # of 320, 46 expected
    assert copy_task(0, min_length=9, max_length=9).x.shape == (16, 19, 9)


def test_bits_are_fair():
    x = torch.cat([copy_task(i, min_length=20).x[:, :20, :8] for i in range(20)])
    assert (x.mean((0, 1)) - 0.5).abs().max() < 0.03
    assert (x[:, 1:] * x[:, :-1]).mean().sub(0.25).abs() < 0.02  # neighbours know nothing


def test_repeat_copy():
    seen, values = set(), {}
    for number in range(40):
        batch = repeat_copy_task(number, bits=4, max_length=3, max_repeats=5)
        for x, target, mask in sequences(batch):
            assert x.shape[1] == 6 and target.shape[1] == 5
            (delimiter,) = np.flatnonzero(x[:, 4])
            assert not x[delimiter, :4].any() and not x[delimiter + 1 :].any()
            assert not x[:delimiter, 4:].any()
            answer = target[mask]
            assert mask.tolist() == [False] * (delimiter + 1) + [True] * len(answer)
            assert answer[-1].tolist() == [0, 0, 0, 0, 1] and not answer[:-1, 4].any()
            repeats, rest = divmod(len(answer) - 1, delimiter)
            assert rest == 0
            for i, vector in enumerate(answer[:-1, :4]):
                np.testing.assert_array_equal(vector, x[i % delimiter, :4])
            seen.add((int(delimiter), repeats))
            values.setdefault(repeats, set()).add(float(x[delimiter, 5]))
    assert seen == {(n, r) for n in (1, 2, 3) for r in (1, 2, 3, 4, 5)}
    # One value per number of repeats, of mean 0 and variance 1 where all are equally likely.
    scaled = np.array([values[r] for r in range(1, 6)])
    assert all(len(v) == 1 for v in values.values())
    scaled = np.array([next(iter(values[r])) for r in range(1, 6)])
    np.testing.assert_allclose([scaled.mean(), scaled.var()], [0, 1], atol=1e-6)
    assert (np.diff(scaled) > 0).all()


def test_more_repeats_than_in_training_go_on_with_the_same_scale():
    def value(**options) -> float:
        batch = repeat_copy_task(0, batch_size=1, min_length=2, max_length=2, **options)
        return float(batch.x[0, 2, 9])

    trained = [value(min_repeats=r, max_repeats=r, scale_repeats=(1, 10)) for r in (1, 10, 20)]
    np.testing.assert_allclose(trained[2] - trained[1], (trained[1] - trained[0]) * 10 / 9)
    np.testing.assert_allclose(trained[:2], [-4.5 / 8.25**0.5, 4.5 / 8.25**0.5], rtol=1e-6)
    assert value(min_repeats=3, max_repeats=3) == 0


def test_associative_recall():
    asked = set()
    for number in range(30):
        batch = associative_recall_task(number, bits=6, item_length=3)
        for x, target, mask in sequences(batch):
            assert x.shape[1] == 8 and target.shape[1] == 6
            starts, queries = np.flatnonzero(x[:, 6]), np.flatnonzero(x[:, 7])
            marks = np.concatenate([starts, queries])
            assert not x[marks, :6].any() and (x[marks, 6:].sum(1) == 1).all()
            # Item after item, the query after the last one, its own mark before and after it.
            assert starts.tolist() == list(range(0, 4 * len(starts), 4))
            assert queries.tolist() == [4 * len(starts), 4 * len(starts) + 4]
            items = [x[start + 1 : start + 4, :6].tolist() for start in starts]
            query = x[queries[0] + 1 : queries[1], :6].tolist()
            place = items.index(query)
            assert target[mask].tolist() == items[place + 1]
            assert mask.tolist() == [False] * (queries[1] + 1) + [True] * 3
            assert not x[queries[1] + 1 :].any()
            asked.add((len(items), place))
    assert asked == {(n, place) for n in range(2, 7) for place in range(n - 1)}


def test_items_of_a_list_differ():
    for number in range(50):
        batch = associative_recall_task(number, bits=2, item_length=2, max_items=4, min_items=4)
        for x, _, _ in sequences(batch):
            items = {x[start + 1 : start + 3, :2].tobytes() for start in range(0, 12, 3)}
            assert len(items) == 4


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_a_pure_function(task):
    batch = task(7, seed=3)
    for number, seed, same in ((7, 3, True), (8, 3, False), (7, 4, False), (3, 7, False)):
        other = task(number, seed=seed)
        equal = batch.x.shape == other.x.shape and torch.equal(batch.x, other.x)
        assert equal == same
    again = task(7, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert len({int(length) for length in batch.lengths}) > 1
    moved = batch.to("meta")
    assert isinstance(moved, TaskBatch) and {t.device.type for t in moved} == {"meta"}


@pytest.mark.parametrize("task", TASKS)
def test_wrong_bits(task):
    batch = task(0, batch_size=6)
    logits = batch.target * 8 - 4
    assert wrong_bits(logits, batch).tolist() == [0] * 6
    # Everything outside the answer may be wrong.
    outside = torch.where(batch.mask[..., None], logits, -logits)
    assert wrong_bits(outside, batch).tolist() == [0] * 6
    bits = batch.mask.sum(1) * batch.target.shape[2]
    assert wrong_bits(-logits, batch).tolist() == bits.tolist()
    ones = batch.target.sum((1, 2))
    assert wrong_bits(torch.zeros_like(logits), batch).tolist() == ones.tolist()
    assert wrong_bits(logits * float("nan"), batch).tolist() == bits.tolist()
    step = int(batch.mask[2].nonzero()[0])
    logits[2, step, 1] *= -1
    wrong = wrong_bits(logits.bfloat16(), batch)
    assert wrong.dtype == torch.float32 and wrong.tolist() == [0, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"wrong_bits: logits must be \[B, T, out\] = \[6, "):
        wrong_bits(logits[:, 1:], batch)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_is_exact(stop):
    def make() -> TaskLoader:
        return TaskLoader(partial(copy_task, batch_size=2, seed=5), batches=3)

    def take(loader: TaskLoader, count: int) -> list[TaskBatch]:
        found: list[TaskBatch] = []
        while True:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    return found

    expected = take(make(), 7)
    for number, batch in enumerate(expected):
        exact = copy_task(number, batch_size=2, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(batch, exact, strict=True))
    loader = make()
    assert len(loader) == len(list(make())) == 3
    take(loader, stop)
    state = loader.state_dict()
    loader = make()
    loader.load_state_dict(state)
    for batch, exact in zip(take(loader, 7 - stop), expected[stop:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, exact, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: copy_task(0, bits=0), "copy_task: batch_size and bits .* got 16 and 0"),
        (lambda: copy_task(0, min_length=5, max_length=4), "copy_task: length .* got 5 and 4"),
        (lambda: copy_task(0, min_length=0), "copy_task: length must satisfy 1 <= min"),
        (lambda: repeat_copy_task(0, min_repeats=0), "repeat_copy_task: repeats .* got 0 and 10"),
        (lambda: repeat_copy_task(0, scale_repeats=(3, 2)), "scale_repeats .* got 3 and 2"),
        (lambda: associative_recall_task(0, min_items=1), "min_items at least 2"),
        (lambda: associative_recall_task(0, item_length=0), "item_length must be at least 1"),
        (lambda: associative_recall_task(0, bits=1), r"got 3, 2 and 2\*\*3 for 6 items"),
        (lambda: TaskLoader(copy_task, batches=0), "TaskLoader: batches must be at least 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
