"""Colour jitter, RandAugment and random erasing: what they do, and that the plan alone decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from stmeta.data.augment import pixel_ops
from stmeta.data.augment.photometric import Photometric
from stmeta.data.augment.rand_augment import OPERATIONS, RandAugment
from stmeta.data.augment.random_erasing import RandomErasing
from stmeta.data.augment.rng import Rng
from stmeta.data.decode.choice import dali_problem
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import EncodedSample, write_shards

FINE_TUNING = "rand-m7-mstd0.5-inc1"
EVERYTHING = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "rand_augment": FINE_TUNING,
    "erase_chance": 0.7,
}


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_video) -> Path:
    root = tmp_path_factory.mktemp("appearance") / "train"
    samples = [
        EncodedSample(key=f"v{i}", video=make_video(i, frames=20), extension="mp4", label=0)
        for i in range(6)
    ]
    write_shards(samples, root, classes=["a"])
    return root


def picture(seed: int = 0, height: int = 20, width: int = 28) -> np.ndarray:
    """A smooth picture with a little noise, [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + seed) + np.cos(y / b) for a, b in ((3, 5), (7, 2), (4, 4))]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return (128 + 55 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def shift(image: Image.Image, data: tuple) -> Image.Image:
    grey = (pixel_ops.GREY,) * 3
    return image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=grey
    )


LIKE_PIL = {
    "brightness": (
        lambda c: pixel_ops.brightness(c, 1.4),
        lambda i: ImageEnhance.Brightness(i).enhance(1.4),
    ),
    "contrast": (
        lambda c: pixel_ops.contrast(c, 0.3),
        lambda i: ImageEnhance.Contrast(i).enhance(0.3),
    ),
    "saturation": (
        lambda c: pixel_ops.saturation(c, 1.7),
        lambda i: ImageEnhance.Color(i).enhance(1.7),
    ),
    "sharpness": (
        lambda c: pixel_ops.sharpness(c, 1.8),
        lambda i: ImageEnhance.Sharpness(i).enhance(1.8),
    ),
    "invert": (pixel_ops.invert, ImageOps.invert),
    "solarize": (lambda c: pixel_ops.solarize(c, 90), lambda i: ImageOps.solarize(i, 90)),
    "posterize": (lambda c: pixel_ops.posterize(c, 3), lambda i: ImageOps.posterize(i, 3)),
    "autocontrast": (pixel_ops.autocontrast, ImageOps.autocontrast),
    "equalize": (pixel_ops.equalize, ImageOps.equalize),
    "rotate": (
        lambda c: pixel_ops.rotate(c, 21),
        lambda i: i.rotate(21, Image.Resampling.BILINEAR, fillcolor=(pixel_ops.GREY,) * 3),
    ),
    "shear_x": (
        lambda c: pixel_ops.shear_x(c, 0.2),
        lambda i: shift(i, (1, 0.2, 0, 0, 1, 0)),
    ),
    "shear_y": (
        lambda c: pixel_ops.shear_y(c, -0.2),
        lambda i: shift(i, (1, 0, 0, -0.2, 1, 0)),
    ),
    "translate_x": (
        lambda c: pixel_ops.translate_x(c, 0.25),
        lambda i: shift(i, (1, 0, 7, 0, 1, 0)),
    ),
    "translate_y": (
        lambda c: pixel_ops.translate_y(c, -0.25),
        lambda i: shift(i, (1, 0, 0, 0, 1, -5)),
    ),
}


@pytest.mark.parametrize("name", LIKE_PIL)
def test_operations_are_those_of_the_imaging_library(name):
    ours, theirs = LIKE_PIL[name]
    for seed in range(3):
        image = picture(seed)
        found = ours(image[None])[0].astype(int)
        exact = np.asarray(theirs(Image.fromarray(image))).astype(int)
        # It cuts blends off where we round, and sets pixels at the border by a rule of its own.
        distance = np.abs(found - exact).max(-1)
        assert np.mean(distance > 1) < 0.02, f"{name}: {np.mean(distance > 1):.3f} of the pixels"
        assert np.abs(exact - image).mean() > 1


def test_a_device_computes_the_same_values():
    """Its kernels, run by torch on the CPU."""
    change = Photometric(
        (0.4, 0.4, 0.4), RandAugment.parse("rand-m9-n3-p1"), RandomErasing(chance=0.5)
    )
    for seed in range(60):
        host = np.stack([picture(seed), picture(seed + 1)])
        device = torch.from_numpy(host.copy())
        change(host, seed)
        change(device, seed)
        assert np.array_equal(host, device.numpy())
    for ours, _ in LIKE_PIL.values():
        image = picture()[None]
        assert np.array_equal(ours(image), ours(torch.from_numpy(image)).numpy())


def test_all_frames_of_a_clip_are_changed_alike():
    still = np.repeat(picture(3)[None], 4, 0)
    for seed in range(40):
        clip = still.copy()
        change = Photometric(
            (0.4, 0.4, 0.4), RandAugment.parse(FINE_TUNING), RandomErasing(chance=0.5)
        )
        change(clip, seed)
        assert (clip == clip[:1]).all()


def test_jitter_multiplies_by_factors_in_its_range():
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    found = set()
    for seed in range(300):
        clip = grey.copy()
        Photometric((0.3, 0.0, 0.0))(clip, seed)
        assert (clip == clip[0, 0, 0, 0]).all()
        found.add(int(clip[0, 0, 0, 0]))
    assert min(found) in range(70, 73) and max(found) in range(128, 131) and len(found) > 50


def test_randaugment_draws_what_its_string_says():
    policy = RandAugment.parse(FINE_TUNING)
    assert policy == RandAugment(7, 2, 0.5, 10, True, 0.5)
    drawn = [policy.sample(Rng(seed, "rand")) for seed in range(4000)]
    counts = Counter(len(chosen) for chosen in drawn)
    for number, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(counts[number] / 4000 - share) < 0.03
    every = [operation for chosen in drawn for operation in chosen]
    names = Counter(name for name, *_ in every)
    assert names.keys() == OPERATIONS.keys()
    assert max(names.values()) / min(names.values()) < 1.4
    levels = np.array([level for _, level, _ in every])
    assert abs(levels.mean() - 0.7) < 0.005 and abs(levels.std() - 0.05) < 0.005
    assert abs(np.mean([sign for *_, sign in every])) < 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m7", "begins with 'rand'"),
        ("rand-q3", "each part is one of m, n, mstd.* got 'q3'"),
        ("rand-m7-m8", "once, and a number; got 'm8'"),
        ("rand-m11", "m must be 0 ... 10"),
        ("rand-m7-inc2", "inc must be 0 or 1"),
    ],
)
def test_policies_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(rand_augment=text)


def test_a_box_is_erased_from_all_frames():
    erasing = RandomErasing(chance=0.25, area=(0.1, 0.2), ratio=(0.5, 2.0))
    boxes = [erasing.box(Rng(seed, "erase"), 40, 60) for seed in range(2000)]
    found = np.array([box for box in boxes if box is not None])
    assert abs(len(found) / 2000 - 0.25) < 0.03
    area = found[:, 2] * found[:, 3] / 2400
    assert 0.09 < area.min() and area.max() < 0.215
    assert (found[:, 0] + found[:, 2] <= 40).all() and (found[:, 1] + found[:, 3] <= 60).all()
    clip = np.random.default_rng(0).integers(0, 255, (5, 40, 60, 3), np.uint8)
    before = clip.copy()
    RandomErasing(chance=1.0, fill="mean")(clip, Rng(1, "erase"))
    changed = (clip != before).any((0, 3))
    top, left, height, width = RandomErasing(chance=1.0).box(Rng(1, "erase"), 40, 60) or (0,) * 4
    outside = changed.copy()
    outside[top : top + height, left : left + width] = False
    assert changed.sum() > 0.9 * height * width and not outside.any()
    assert (
        len(np.unique(clip[:, top : top + height, left : left + width].reshape(-1, 3), axis=0)) == 1
    )


def clips(root: Path, epoch: int = 0, **options) -> list[torch.Tensor]:
    options = {"batch_size": 3, "frames": 8, "size": 32, "device": "cpu", **options}
    with ClipLoader(root, LoaderConfig(**options)) as loader:
        loader.set_epoch(epoch)
        return [batch.video.clone() for batch in loader]


@pytest.mark.parametrize("other", [{"threads": 1}, {"processes": 2, "cache_mib": 0}])
def test_pixels_depend_on_the_plan_alone(split, other):
    exact = clips(split, **EVERYTHING)
    assert all(map(torch.equal, exact, clips(split, **EVERYTHING, **other)))
    assert not any(map(torch.equal, exact, clips(split, epoch=1, **EVERYTHING)))
    assert not any(map(torch.equal, exact, clips(split)))


def test_one_kind_leaves_the_draws_of_others_alone(split):
    """Cut-outs stay where they are, whatever is done to colours before."""
    plain, erased = clips(split), clips(split, erase_chance=1.0, erase_fill="mean")
    both = clips(split, erase_chance=1.0, erase_fill="mean", brightness=0.2)
    for a, b, c in zip(plain, erased, both, strict=True):
        box = (a != b).any(2).all(1)  # [B, H, W]
        flat = c.float().std(1).amax(1)
        assert box.any() and float(flat[box].max()) == 0


def test_an_evaluation_changes_nothing(split):
    assert all(map(torch.equal, clips(split, train=False), clips(split, train=False, **EVERYTHING)))


@pytest.mark.skipif(bool(dali_problem()), reason=f"DALI: {dali_problem()}")
def test_with_dali_too(split):
    options = {"crop_scale": (1.0, 1.0), "decoder": "dali", "erase_chance": 1.0}
    for cache_mib in (0, 100):
        plain = clips(split, crop_scale=(1.0, 1.0), decoder="dali", cache_mib=cache_mib)
        found = clips(split, cache_mib=cache_mib, **options)
        for a, b in zip(plain, found, strict=True):
            changed = (a != b).any(2).all(1).float().mean((1, 2))  # share of each clip's pixels
            assert ((changed > 0.015) & (changed < 0.4)).all()
