from __future__ import annotations

import numpy as np
import pytest
import torch

from stmeta.data.episodes.clips import ClipSource, FeatureSource
from stmeta.data.episodes.loader import EpisodeLoader
from stmeta.data.episodes.sampler import EpisodeSampler, instance_numbers
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, write_shards

LABELS = np.repeat(np.arange(8), 6)  # 8 classes of 6 samples


def test_an_episode_has_every_class_equally_often():
    plan = EpisodeSampler(LABELS, ways=3, instances=4, seed=1)
    for number in range(50):
        episode = plan(number)
        assert len(episode.samples) == len(set(episode.samples)) == 12
        assert np.bincount(episode.labels).tolist() == [4, 4, 4]
        np.testing.assert_array_equal(LABELS[episode.samples], episode.class_ids)
        # One name per class, one class per name.
        pairs = set(zip(episode.labels.tolist(), episode.class_ids.tolist(), strict=True))
        assert len(pairs) == 3


def test_names_and_order_change_from_episode_to_episode():
    plan = EpisodeSampler(LABELS, ways=3, instances=4)
    episodes = [plan(number) for number in range(300)]
    names = {(int(c), int(n)) for e in episodes for n, c in zip(e.labels, e.class_ids, strict=True)}
    assert len(names) == 8 * 3
    first = np.bincount([e.labels[0] for e in episodes])
    assert first.min() > 70
    assert len({tuple(e.labels) for e in episodes}) > 290
    used = np.unique(np.concatenate([e.samples for e in episodes]))
    assert len(used) == len(LABELS)


def test_a_plan_is_a_pure_function():
    plan, again = EpisodeSampler(LABELS, seed=5, ways=2, instances=3), None
    forwards = [plan(i).samples.tolist() for i in range(10)]
    again = EpisodeSampler(LABELS, seed=5, ways=2, instances=3)
    assert [again(i).samples.tolist() for i in reversed(range(10))] == forwards[::-1]
    other = EpisodeSampler(LABELS, seed=6, ways=2, instances=3)
    assert [other(i).samples.tolist() for i in range(10)] != forwards


def test_classes_can_be_kept_apart():
    train = EpisodeSampler(LABELS, ways=2, instances=3, classes=range(5))
    test = EpisodeSampler(LABELS, ways=2, instances=3, classes=[5, 6, 7])
    seen = {c for i in range(40) for c in train(i).class_ids.tolist()}
    unseen = {c for i in range(40) for c in test(i).class_ids.tolist()}
    assert seen == {0, 1, 2, 3, 4} and unseen == {5, 6, 7}


def test_a_length_makes_counts_differ():
    plan = EpisodeSampler(LABELS, ways=3, length=7)
    episodes = [plan(i) for i in range(100)]
    assert {len(e.labels) for e in episodes} == {7}
    assert len({tuple(np.bincount(e.labels, minlength=3)) for e in episodes}) > 10
    assert all(len(set(e.samples)) == 7 for e in episodes)


def test_unlabelled_and_rare_samples_are_not_drawn():
    labels = np.array([0] * 4 + [1] * 4 + [2] * 3 + [-1] * 9)
    plan = EpisodeSampler(labels, ways=2, instances=4)
    assert plan.classes.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"3 classes with 4 samples each .* 2 have .*fewer: \[2\]"):
        EpisodeSampler(labels, ways=3, instances=4)
    with pytest.raises(ValueError, match="must be at least 1"):
        EpisodeSampler(labels, ways=0)


def test_instance_numbers():
    labels = np.array([[0, 1, 0, 0, 2, 1], [2, 2, 2, 2, 2, 2]])
    expected = [[0, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert instance_numbers(labels).tolist() == expected
    assert instance_numbers(labels[0]).tolist() == expected[0]


def table(views: int = 2) -> FeatureSource:
    features = torch.arange(views * len(LABELS), dtype=torch.float32).view(views, -1, 1)
    return FeatureSource(features.expand(-1, -1, 4), [f"k{i}" for i in range(len(LABELS))])


def test_features():
    plan = EpisodeSampler(LABELS, ways=3, instances=2)
    loader = EpisodeLoader(plan, table(), batch_size=4, episodes=10)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 2] and len(loader) == 3
    batch = batches[1]
    episode = plan(5)
    assert batch.x.shape == (4, 6, 4)
    assert batch.label[1].tolist() == episode.labels.tolist()
    assert batch.class_id[1].tolist() == episode.class_ids.tolist()
    assert batch.given_label[1, 1:].argmax(1).tolist() == episode.labels[:-1].tolist()
    assert not batch.given_label[:, 0].any() and batch.target_mask.all()
    assert batch.instance[1].tolist() == instance_numbers(episode.labels).tolist()
    assert batch.key[1] == [f"k{i}" for i in episode.samples]
    drawn = batch.x[1, :, 0].long().numpy()
    assert (drawn % len(LABELS)).tolist() == episode.samples.tolist()
    views = torch.cat([b.x[..., 0].flatten() for b in batches]).long() // len(LABELS)
    assert 15 < int(views.sum()) < 45  # both views are used
    for field in (batch.label, batch.class_id, batch.instance):
        assert field.dtype == torch.int64 and field.shape == (4, 6)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_is_exact(stop):
    def make() -> EpisodeLoader:
        plan = EpisodeSampler(LABELS, ways=3, instances=2)
        return EpisodeLoader(plan, table(), batch_size=4, episodes=10)

    def take(loader: EpisodeLoader, count: int) -> list:
        found: list = []
        while True:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    return found

    expected = take(make(), 8)
    assert not torch.equal(expected[0].label, expected[3].label)  # new epoch, new episodes
    loader = make()
    found = take(loader, stop)
    state = loader.state_dict()
    loader = make()
    loader.load_state_dict(state)
    found += take(loader, 8 - stop)
    for got, exact in zip(found, expected, strict=True):
        assert torch.equal(got.x, exact.x) and got.key == exact.key


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("episodes") / "train"
    random = np.random.default_rng(0)
    samples = []
    for number in range(12):
        colour = random.integers(0, 256, 3, dtype=np.uint8)
        video = (
            np.broadcast_to(colour, (12, 32, 32, 3))
            + np.arange(12, dtype=np.uint8)[:, None, None, None]
        )
        content = encode_frames(video.astype(np.uint8), 25, codec="mjpeg")
        samples.append(
            EncodedSample(key=f"s{number}", video=content, extension="avi", label=number % 4)
        )
    write_shards(samples, root, classes=list("abcd"))
    return root


def test_clips(split):
    config = LoaderConfig(frames=4, size=16, batch_size=5, device="cpu")
    with ClipLoader(split, config) as clips:
        plan = EpisodeSampler(clips.index.labels, ways=2, instances=3)
        loader = EpisodeLoader(plan, ClipSource(clips), batch_size=2, episodes=5)
        batches = list(loader)
        again = EpisodeLoader(plan, ClipSource(clips), batch_size=2, episodes=5)
        again.load_state_dict({"epoch": 0, "position": 1})
        assert torch.equal(next(iter(again)).x, batches[1].x)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    batch = batches[0]
    assert batch.x.shape == (2, 6, 4, 3, 16, 16)
    episode = plan(1)
    assert batch.key[1] == [f"s{i}" for i in episode.samples]
    for step, sample in enumerate(episode.samples):
        # Every video has one colour per frame.
        pixels = batch.x[1, step].float()
        assert pixels.std((-1, -2)).max() < 4
        same = [k for k in range(6) if batch.key[0][k] == f"s{sample}"]
        for k in same:
            assert (batch.x[0, k].float().mean() - pixels.mean()).abs() < 20


def test_errors(split):
    plan = EpisodeSampler(LABELS, ways=2, instances=2)
    features = table().features
    with pytest.raises(ValueError, match=r"\[views, n, D\], got \[48, 4\]"):
        FeatureSource(features[0], ["a"] * 48)
    with pytest.raises(ValueError, match="keys must name the 48 columns of features, got 3"):
        FeatureSource(features, ["a"] * 3)
    with pytest.raises(ValueError, match="batch_size and episodes"):
        EpisodeLoader(plan, table(), batch_size=0, episodes=1)


def test_support_and_queries_of_features():
    """Every protocol serves every source."""
    plan = EpisodeSampler(LABELS, ways=3, instances=3)
    options = {"batch_size": 4, "episodes": 4, "protocol": "support_query", "shots": 1}
    batch = next(iter(EpisodeLoader(plan, table(), queries=2, **options)))
    assert batch.target_mask.tolist() == [[False] * 3 + [True] * 6] * 4
    assert (batch.given_label[:, :3].argmax(2) == batch.label[:, :3]).all()
    with pytest.raises(ValueError, match=r"shots \+ queries = 4, got delay None and 3"):
        EpisodeLoader(plan, table(), queries=3, **options)
