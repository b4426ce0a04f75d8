"""Batches that mix labelled and unlabelled samples in a fixed ratio."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.loading.sampler import ClipSampler
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards

LABELS = np.array([i % 3 if i % 4 == 1 else -1 for i in range(60)])  # 15 of 60 have a label


def make(labels=LABELS, **options) -> ClipSampler:
    options = {"clip_frames": 8, "batch_size": 8, "labelled_share": 0.25, **options}
    return ClipSampler(np.full(len(labels), 40, np.int32), labels=labels, **options)


def whole(plan: ClipSampler, epoch: int = 0) -> list:
    return [plan.batch(epoch, i) for i in range(len(plan))]


def known(batch: list) -> int:
    return int((LABELS[[request.sample for request in batch]] >= 0).sum())


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.3, 2), (0.5, 4), (0.875, 7), (1, 8)])
def test_every_batch_has_so_many_with_a_label(share, count):
    plan = make(labelled_share=share)
    assert {known(batch) for epoch in range(3) for batch in whole(plan, epoch)} == {count}


def test_an_epoch_is_over_with_the_part_that_lasts_longer():
    # Two labelled of eight: 15 // 2 = 7 batches of the labelled, 45 // 6 = 7 of the others.
    assert len(make()) == 7
    assert Counter(Counter(r.sample for b in whole(make()) for r in b).values()) == {1: 56}
    # Half and half: 45 // 4 = 11 batches; the 15 labelled go round 44 / 15 times.
    plan = make(labelled_share=0.5)
    assert len(plan) == 11
    seen = Counter(request.sample for batch in whole(plan) for request in batch)
    assert {seen[i] for i in np.flatnonzero(LABELS < 0)} == {0, 1}  # one of 45 is left over
    assert {seen[i] for i in np.flatnonzero(LABELS >= 0)} == {2, 3}
    assert len(make(labelled_share=0)) == 45 // 8 and len(make(labelled_share=1)) == 1


def test_rounds_of_the_shorter_part_differ_in_order_and_starts():
    plan = make(labelled_share=0.5)
    turns = [r for batch in whole(plan) for r in batch if LABELS[r.sample] >= 0]
    first, second = turns[:15], turns[15:30]
    assert {r.sample for r in first} == {r.sample for r in second}
    assert [r.sample for r in first] != [r.sample for r in second]
    assert not {r.seed for r in first} & {r.seed for r in second}
    again = [r for batch in whole(plan, 1) for r in batch if LABELS[r.sample] >= 0]
    assert [r.sample for r in again[:15]] != [r.sample for r in first]


def test_ranks_share_the_sequence_of_one():
    alone = make(batch_size=24)
    ranks = [make(rank=rank, world_size=3) for rank in range(3)]
    assert {len(plan) for plan in ranks} == {len(alone)} == {2}
    for i in range(2):
        parts = [plan.batch(4, i) for plan in ranks]
        assert [known(part) for part in parts] == [2, 2, 2]
        assert alone.batch(4, i) == [request for part in parts for request in part]


def test_repeats_stay_together():
    plan = make(batch_size=16, repeats=2)
    for batch in whole(plan):
        assert known(batch) == 4
        assert all(a.shares_frames(b) for a, b in zip(batch[::2], batch[1::2], strict=True))


def test_substitutes_keep_the_ratio():
    for request in make().batch(0, 0):
        label = LABELS[request.sample]
        count = int((LABELS == label).sum())
        found = [make().substitute(request, attempt) for attempt in range(count)]
        assert (
            sorted(other.sample for other in found if other)
            == np.flatnonzero(LABELS == label).tolist()
        )


def test_the_plan_takes_eight_bytes_a_sample():
    plan = make(labels=np.tile(LABELS, 1000))
    for label in range(-1, 3):
        if len(samples := np.flatnonzero(plan.labels == label)):
            plan.substitute(plan.clip(int(samples[0])), 0)
    assert plan.labelled_sampler is not None
    kept = {
        id(array): array.nbytes for array in [*plan.labelled_sampler.parts, *plan._members.values()]
    }
    assert sum(kept.values()) <= 8 * len(plan.frames)


def test_without_it_nothing_changes():
    plain = ClipSampler(np.full(60, 40, np.int32), labels=LABELS, clip_frames=8, batch_size=8)
    assert whole(plain, 3) == whole(make(labelled_share=None), 3)
    # As it was before shares were there.
    assert [request.sample for request in plain.batch(0, 0)] == [3, 37, 10, 38, 28, 8, 53, 13]
    evaluation = make(train=False)
    assert [r.sample for batch in whole(evaluation) for r in batch] == list(range(60))


@pytest.mark.parametrize(
    ("labels", "share", "message"),
    [
        (np.zeros(9, int), 0.5, "needs samples without a label, got 9 samples of which none is"),
        (np.full(9, -1), 0.5, "needs samples with a label, got 9 samples of which none is"),
        (LABELS, 0.01, "labelled_share = 0.01 of 8 videos in a batch rounds to 0; use a larger"),
        (LABELS, 0.99, "rounds to 8; use a larger batch, another share, or 1 if"),
        (LABELS, -0.1, r"must be in \[0, 1\] or None, got -0.1"),
    ],
)
def test_errors(labels, share, message):
    with pytest.raises(ValueError, match=message):
        make(labels, labelled_share=share)


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_video) -> ShardIndex:
    """Twelve videos; three have a label."""
    root = tmp_path_factory.mktemp("labels") / "train"
    samples = (
        EncodedSample(
            key=f"v{i:02d}",
            video=make_video(i, frames=10),
            extension="mp4",
            label=0 if i % 4 == 0 else -1,
        )
        for i in range(12)
    )
    write_shards(samples, root, classes=["a"])
    return ShardIndex.open(root)


def loader(index: ShardIndex, *, rank: int = 0, of: int = 1, **options) -> ClipLoader:
    options = {"batch_size": 4, "labelled_share": 0.25, **options}
    config = LoaderConfig(frames=4, size=16, threads=1, device="cpu", **options)
    return ClipLoader(index, config, rank=rank, world_size=of)


def rows(batch) -> list[tuple[str, int, int]]:
    pixels = [hash(clip.numpy().tobytes()) for clip in batch.video]
    return list(zip(batch.key, batch.frame_index[:, 0].tolist(), pixels, strict=True))


def test_two_ranks_then_one_see_what_one_would(index):
    with loader(index, labelled_share=0.5) as one:
        wanted = [rows(batch) for batch in one]
        assert len(wanted) == len(one) == 9 // 2
        assert all(int((batch.label >= 0).sum()) == 2 for batch in one)  # the next epoch
    pair = [loader(index, rank=rank, of=2, batch_size=2, labelled_share=0.5) for rank in range(2)]
    seen = [[row for each in pair for row in rows(next(iter(each)))]]
    for each in pair:
        each.close()
    with loader(index, labelled_share=0.5) as one:
        one.load_state_dict(json.loads(json.dumps(pair[1].state_dict())))
        seen += [rows(batch) for batch in one]
    assert seen == wanted


def test_a_state_of_another_ratio_is_refused(index):
    with loader(index) as one:
        state = one.state_dict()
    assert state["labelled"] == 1
    with pytest.raises(ValueError, match=r"1 of 4 clips labelled, this loader makes them with 2"):
        loader(index, batch_size=2, labelled_share=0.5, of=2).load_state_dict(state)
    plain = loader(index, labelled_share=None)
    with pytest.raises(ValueError, match="this loader makes them with labels as they come"):
        plain.load_state_dict(state)
    assert "labelled" not in plain.state_dict()


def test_the_loader_says_what_is_missing(index):
    with pytest.raises(ValueError, match=r"LoaderConfig: labelled_share must be in \[0, 1\]"):
        LoaderConfig(labelled_share=2)
    with pytest.raises(ValueError, match="rounds to 0"):
        loader(index, labelled_share=0.1)
