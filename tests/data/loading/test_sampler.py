from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stmeta._util.hashing import hash64, shuffled, uniform
from stmeta.data.loading.sampler import ClipRequest, ClipSampler


def make(n: int = 50, frames: int = 40, **options) -> ClipSampler:
    options = {"clip_frames": 16, "batch_size": 4, **options}
    return ClipSampler(np.full(n, frames, np.int32), **options)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16, 97, 1000, 1025])
def test_shuffled_is_a_permutation(count):
    assert sorted(shuffled(i, count, 3) for i in range(count)) == list(range(count))


def test_every_order_of_four_comes_about_equally_often():
    orders = Counter(tuple(shuffled(i, 4, seed) for i in range(4)) for seed in range(4800))
    assert len(orders) == 24
    assert min(orders.values()) > 130 and max(orders.values()) < 280  # 200 expected


def test_neighbours_are_torn_apart():
    order = np.array([shuffled(i, 1000, 7) for i in range(1000)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
    assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.1


def test_uniform_fills_the_interval():
    values = np.array([uniform(hash64(5, i), 0) for i in range(4000)])
    assert 0 <= values.min() and values.max() < 1
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert counts.min() > 320 and counts.max() < 480


def test_batches_do_not_depend_on_what_was_asked_before():
    plan, again = make(), make()
    forwards = [plan.batch(2, i) for i in range(len(plan))]
    backwards = [again.batch(2, i) for i in reversed(range(len(again)))]
    assert forwards == backwards[::-1]
    assert forwards != [make(seed=1).batch(2, i) for i in range(len(plan))]
    assert forwards != [plan.batch(3, i) for i in range(len(plan))]


def test_ranks_share_an_epoch_without_overlap():
    plans = [make(rank=rank, world_size=3) for rank in range(3)]
    assert {len(plan) for plan in plans} == {50 // 12}
    samples = [r.sample for plan in plans for i in range(len(plan)) for r in plan.batch(0, i)]
    assert len(samples) == len(set(samples)) == 48


def test_training_order_is_the_same_for_any_number_of_ranks():
    alone = make(batch_size=12)
    shared = [make(batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    for i in range(len(alone)):
        assert alone.batch(1, i) == [r for plan in shared for r in plan.batch(1, i)]


@pytest.mark.parametrize("n", [1, 3, 8, 9, 50])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_evaluation_sees_every_sample_once(n, batch_size, world_size):
    options = {"train": False, "batch_size": batch_size, "world_size": world_size}
    plans = [make(n, rank=rank, **options) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    seen = Counter()
    for plan in plans:
        for i in range(len(plan)):
            batch = plan.batch(0, i)
            assert 1 <= len(batch) <= batch_size
            seen.update(r.sample for r in batch)
    assert set(seen) == set(range(n))
    # Only where fewer clips than ranks are left does a clip come twice.
    assert seen.total() - n < world_size
    if world_size == 1:
        assert [r.sample for i in range(len(plan)) for r in plan.batch(0, i)] == list(range(n))


def test_a_small_set_goes_round_until_it_fills_a_batch():
    plan = make(5, batch_size=12)
    batch = plan.batch(0, 0)
    assert len(plan) == 1
    assert Counter(Counter(r.sample for r in batch).values()) == Counter({2: 3, 3: 2})
    assert len(set(batch)) > 5  # another round starts its clips elsewhere


def test_training_starts_cover_the_video_and_stay_inside():
    plan = make(1, frames=20, batch_size=1)
    starts = Counter(plan.batch(epoch, 0)[0].start for epoch in range(1000))
    assert sorted(starts) == [0, 1, 2, 3, 4]
    assert min(starts.values()) > 140


def test_evaluation_starts():
    assert make(frames=40, train=False).batch(0, 0)[0].start == 12
    starts = [r.start for r in make(frames=41, train=False, views=3, batch_size=3).batch(0, 0)]
    assert starts == [0, 12, 25]


def test_views_of_a_video_lie_next_to_each_other():
    plan = make(3, train=False, views=2, batch_size=4)
    assert [[r.sample for r in plan.batch(0, i)] for i in range(len(plan))] == [
        [0, 0, 1, 1],
        [2, 2],
    ]


@pytest.mark.parametrize("train", [True, False])
def test_a_short_video_holds_its_last_frame(train):
    plan = make(4, frames=5, train=train, stride=2, clip_frames=4)
    request = plan.batch(0, 0)[0]
    assert request.start == 0
    assert plan.indices(request).tolist() == [0, 2, 4, 4]


def test_indices_follow_the_stride():
    plan = make(stride=3, clip_frames=4, frames=40)
    assert plan.indices(ClipRequest(0, 7, 0)).tolist() == [7, 10, 13, 16]


def test_a_clip_can_be_planned_by_its_sample():
    plan = make()
    for request in plan.batch(6, 2):
        assert plan.clip(request.sample, epoch=6) == request


def test_substitutes_have_the_same_label_and_run_out():
    labels = np.arange(50) % 5
    plan = make(labels=labels)
    request = plan.batch(0, 0)[0]
    found = [plan.substitute(request, attempt) for attempt in range(10)]
    assert {r.sample for r in found} == set(np.flatnonzero(labels == labels[request.sample]))
    assert plan.substitute(request, 10) is None
    assert found == [plan.substitute(request, attempt) for attempt in range(10)]
    assert len({r.seed for r in found}) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_frames": 0}, "clip_frames must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"n": 0}, "0 samples"),
        ({"frames": 0}, "must have frames"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("train", [True, False])
def test_aligned_clips_start_at_multiples(train):
    frames = np.array([70, 61, 10, 200])
    plan = ClipSampler(
        frames, clip_frames=16, stride=4, batch_size=2, train=train, views=3, align=4
    )
    requests = [plan.request(epoch, i) for epoch in range(9) for i in range(4 * plan.views)]
    assert all(request.start % 4 == 0 for request in requests)
    assert all(request.start + 61 <= max(61, frames[request.sample]) for request in requests)
    starts = {request.start for request in requests if request.sample == 3}
    assert len(starts) > 2
