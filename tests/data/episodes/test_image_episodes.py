from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from stmeta._util.hashing import uniform, uniforms
from stmeta.data.datasets.omniglot import load_omniglot
from stmeta.data.episodes.images import _turn, image_episodes
from stmeta.data.episodes.loader import EpisodeBatch, EpisodeLoader
from stmeta.data.episodes.sampler import EpisodeSampler, instance_numbers

CLASSES, COUNT, HEIGHT, WIDTH = 9, 6, 8, 10


def table() -> torch.Tensor:
    """Every image is one grey of its own, 20 ... 253 in steps of at least 4, on every pixel."""
    greys = torch.arange(CLASSES * COUNT, dtype=torch.uint8) * 4 + 20
    return greys.view(CLASSES, COUNT, 1, 1).expand(-1, -1, HEIGHT, WIDTH).contiguous()


def make(images: torch.Tensor | None = None, **options) -> EpisodeLoader:
    options = {"episodes": 10, "batch_size": 4, "ways": 3, "seed": 2} | options
    return image_episodes(table() if images is None else images, **options)


def drawn(batch: EpisodeBatch) -> np.ndarray:
    """Which image each step shows, by its grey."""
    grey = (batch.x.amax(-1) * 255).round().long().numpy()
    return (grey - 20) // 4


def test_offset():
    loader = make(instances=4, names=[f"n{i}" for i in range(CLASSES)])
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 2] and len(loader) == 3
    plan = EpisodeSampler(np.repeat(np.arange(CLASSES), COUNT), ways=3, instances=4, seed=2)
    for number in range(10):
        batch, row = batches[number // 4], number % 4
        episode = plan(number)
        assert batch.x.shape[1:] == (12, HEIGHT * WIDTH) and batch.x.dtype == torch.float32
        np.testing.assert_array_equal(drawn(batch)[row], episode.samples)
        np.testing.assert_array_equal(batch.label[row], episode.labels)
        np.testing.assert_array_equal(batch.class_id[row], episode.samples // COUNT)
        np.testing.assert_array_equal(batch.instance[row], instance_numbers(episode.labels))
        assert batch.key[row] == [f"n{i // COUNT}/{i % COUNT:02d}" for i in episode.samples]
        assert batch.target_mask[row].all() and batch.target_mask.dtype == torch.bool
        given = batch.given_label[row]
        assert given.shape == (12, 3) and given.dtype == torch.float32
        assert not given[0].any() and (given[1:].sum(1) == 1).all()
        assert given[1:].argmax(1).tolist() == episode.labels[:-1].tolist()
    assert {f.dtype for f in (batch.label, batch.class_id, batch.instance)} == {torch.int64}
    white = make(torch.full((3, 4, 5, 5), 255, dtype=torch.uint8), instances=4).batch([0])
    assert (white.x == 1).all()


@pytest.mark.parametrize("delay", [1, 3, 8])
def test_delayed(delay):
    batch = make(protocol="delayed", delay=delay, length=8).batch([0, 5])
    assert batch.label.shape == (2, 8) and batch.target_mask.all()
    for row, step in itertools.product(range(2), range(8)):
        expected = [0.0] * 3
        if step >= delay:
            expected[int(batch.label[row, step - delay])] = 1
        assert batch.given_label[row, step].tolist() == expected
    if delay == 1:
        offset = make(length=8).batch([0, 5])
        assert torch.equal(offset.given_label, batch.given_label)
        assert torch.equal(offset.x, batch.x)


def test_support_query():
    batch = make(instances=5, protocol="support_query", shots=2, queries=3).batch(range(40))
    assert batch.label.shape == (40, 15)
    assert batch.target_mask.tolist() == [[False] * 6 + [True] * 9] * 40
    for row in range(40):
        label, given = batch.label[row], batch.given_label[row]
        assert label[:6].bincount().tolist() == [2] * 3 and label[6:].bincount().tolist() == [3] * 3
        assert given[:6].tolist() == torch.eye(3)[label[:6]].tolist() and not given[6:].any()
        samples = drawn(batch)[row]
        assert len(set(samples)) == 15  # no query is one of the support
        np.testing.assert_array_equal(batch.class_id[row], samples // COUNT)
        names = dict(zip(batch.class_id[row].tolist(), label.tolist(), strict=True))
        assert sorted(names.values()) == [0, 1, 2] and len(names) == 3
        np.testing.assert_array_equal(batch.instance[row], instance_numbers(label.numpy()))
        assert batch.key[row] == [f"{i // COUNT}/{i % COUNT:02d}" for i in samples]


def test_support_comes_in_every_order_equally_often():
    loader = make(instances=3, protocol="support_query", shots=2, queries=1, ways=2)
    label = loader.batch(range(3000)).label
    codes = (label[:, :4] * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = codes.bincount()
    counts = counts[counts > 0]
    # 6 orders of AABB, 500 ± 20 each; taking them in the order of a longer shuffle gives 600 twice.
    assert len(counts) == 6 and counts.min() > 425 and counts.max() < 575
    assert 1350 < int(label[:, 4].sum()) < 1650


def test_shift_moves_whole_images():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(1, 255, (5, 6, 7, 9), dtype=np.uint8))
    still = image_episodes(images, episodes=50, length=7, batch_size=50).batch(range(50))
    moved = image_episodes(images, episodes=50, length=7, batch_size=50, shift=2).batch(range(50))
    assert still.key == moved.key
    found = []
    for image, result in zip(still.x.view(-1, 7, 9), moved.x.view(-1, 7, 9), strict=True):
        padded = np.pad(image.numpy(), 2)
        places = [
            (down, right)
            for down, right in itertools.product(range(5), range(5))
            if np.array_equal(padded[down : down + 7, right : right + 9], result.numpy())
        ]
        assert len(places) == 1
        found += places
    counts = np.array([found.count(place) for place in itertools.product(range(5), range(5))])
    assert counts.sum() == 350 and counts.min() >= 4 and counts.max() < 32  # 14 expected


def blob(height: int, width: int, y: float, x: float) -> torch.Tensor:
    """A smooth spot at a place counted from the centre; y goes down."""
    rows = torch.arange(height) - (height - 1) / 2 - y
    columns = torch.arange(width) - (width - 1) / 2 - x
    return torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 12)


@pytest.mark.parametrize(
    ("angle", "down", "right"), [(0.0, 0, 0), (0.0, 2, -1), (0.3, 0, 0), (-0.2, 0, 0), (0.5, -2, 1)]
)
def test_turn(angle, down, right):
    image = blob(31, 39, y=2.0, x=8.0)
    result = _turn(image[None], np.array([down]), np.array([right]), np.array([angle]))[0]
    # y goes down, so clockwise on a screen takes (1, 0) to (cos, sin).
    x = 8.0 * math.cos(angle) - 2.0 * math.sin(angle) + right
    y = 8.0 * math.sin(angle) + 2.0 * math.cos(angle) + down
    # Linear interpolation is off by at most 1/8 of the second derivative (1/6), along each axis.
    assert (result - blob(31, 39, y=y, x=x)).abs().max() < (2 / 48 if angle else 1e-4)


def test_rotation_is_bounded_and_takes_part():
    image = (blob(31, 31, y=0, x=9) * 255).byte().expand(3, 4, -1, -1).contiguous()
    loader = make(image, length=4, rotation=math.pi / 16, episodes=60)
    x = loader.batch(range(60)).x.view(-1, 31, 31)
    places = torch.arange(31.0) - 15
    mass = x.sum((-1, -2))
    angle = torch.atan2((x * places[:, None]).sum((1, 2)) / mass, (x * places).sum((1, 2)) / mass)
    limit = math.pi / 16
    assert angle.abs().max() < limit + 0.01
    assert angle.max() > 0.9 * limit and angle.min() < -0.9 * limit
    assert abs(float(angle.mean())) < 0.03 and abs(float(angle.var()) - limit**2 / 3) < 0.003
    both = make(image, length=4, rotation=0.1, shift=2).batch([0]).x
    assert not torch.equal(both, make(image, length=4, rotation=0.1).batch([0]).x)


def test_uniform_is_the_plan_s():
    seeds = [0, 1, 2**64 - 1, 0x9E3779B97F4A7C15]
    values = uniforms(np.array(seeds, np.uint64), 5, 3)
    for row, seed in enumerate(seeds):
        assert values[row].flatten().tolist() == [uniform(seed, i) for i in range(15)]


@pytest.mark.parametrize("options", [{}, {"shift": 2}, {"shift": 1, "rotation": 0.2}])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_is_exact(stop, options):
    def take(loader: EpisodeLoader, count: int) -> list[EpisodeBatch]:
        found: list[EpisodeBatch] = []
        while True:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    return found

    expected = take(make(instances=2, **options), 8)
    assert not torch.equal(expected[0].label, expected[3].label)  # new epoch, new episodes
    loader = make(instances=2, **options)
    found = take(loader, stop)
    state = loader.state_dict()
    loader = make(instances=2, **options)
    loader.load_state_dict(state)
    found += take(loader, 8 - stop)
    for got, exact in zip(found, expected, strict=True):
        assert torch.equal(got.x, exact.x) and got.key == exact.key
        assert torch.equal(got.given_label, exact.given_label)
    # An episode does not depend on the others of its batch, nor on the size of the batch.
    one = loader.batch([11])
    assert torch.equal(one.x[0], expected[3].x[1])
    other = make(instances=2, seed=3, **options).batch([11])
    assert not torch.equal(one.x, other.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 4, "protocol": "none"},
            "one of offset, .* got 'none'",
        ),
        ({"length": 4, "protocol": "offset", "delay": 2}, "offset has a delay of 1, got 2; use"),
        ({"length": 4, "protocol": "delayed"}, "delayed needs a delay of at least 1, got None"),
        (
            {"length": 4, "protocol": "delayed", "delay": 0},
            "needs a delay of at least 1, got 0",
        ),
        (
            {"length": 4, "protocol": "support_query", "shots": 1},
            "needs shots and .* got 1 and None",
        ),
        ({"protocol": "support_query", "shots": 1, "queries": 1, "length": 4}, "and a length"),
        (
            {"length": 4, "shots": 1},
            "belong to support_query, got protocol offset",
        ),
        (
            {"length": 4, "batch_size": 0},
            "must be at least 1, got 0 and 10",
        ),
        ({"names": ["a"]}, "names must name the 9 classes, got 1"),
        ({"shift": -1}, "shift and rotation must be at least 0, got -1 and 0.0"),
        ({"rotation": float("nan")}, "got 0 and nan"),
        ({"images": table().float()}, r"must be uint8 \[classes, n, H, W\] .* got torch.float32"),
        ({"images": table()[0]}, r"got torch.uint8 \[6, 8, 10\] on cpu"),
        ({"instances": 7}, "3 classes with 7 samples each"),
        ({}, "3 classes with 10 samples each"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_real_characters(shared_data):
    root = shared_data / "omniglot"
    if not root.is_dir():
        pytest.skip(f"Omniglot is not here ({root})")
    data = load_omniglot(root)
    options = {"names": data.names, "episodes": 100_000}
    loader = image_episodes(data.images, shift=2, rotation=math.pi / 16, **options)
    batch = loader.batch(range(16))
    assert batch.x.shape == (16, 50, 400) and 0.06 < batch.x.mean() < 0.1
    place = {name: row for row, name in enumerate(data.names)}
    for row, step in itertools.product(range(16), range(0, 50, 7)):
        name, number = batch.key[row][step].rsplit("/", 1)
        image = data.images[place[name], int(number)].float() / 255
        assert batch.class_id[row, step] == place[name]
        assert (batch.x[row, step].sum() - image.sum()).abs() < 0.25 * image.sum()
