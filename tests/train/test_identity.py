"""What identifies a clip and a class in training: not the key, and not the label's number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stmeta.data.loading.config import LoaderConfig
from stmeta.data.shards.classes import trained_classes
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from stmeta.models.classifier import VideoClassifier
from stmeta.models.small_vit import SmallViTConfig
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._clips import clip_loader, loader_config
from stmeta.train.tasks.classify import ClassifyConfig, ClassifyTask
from stmeta.train.tasks.fewshot import feature_table

MODEL = SmallViTConfig(image_size=32, frames=4, dim=16, depth=1, heads=1, head_dim=16)
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def videos(encode) -> list[bytes]:
    return [encode(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def encode():
    import numpy as np

    from stmeta.data.ingest.encode import encode_frames

    def make(seed: int) -> bytes:
        texture = np.random.default_rng(seed).integers(20, 235, (6, 8, 3), dtype=np.uint8)
        frame = texture.repeat(8, 0).repeat(8, 1)
        return encode_frames(np.stack([np.roll(frame, 2 * t, 1) for t in range(8)]), 25, gop=8)

    return make


def put(folder: Path, videos: list[bytes], labels: list[int], name: str = "0") -> Path:
    """One shard whose keys are 0, 1, 2, ..., whatever other shards of the split have."""
    samples = [
        EncodedSample(key=str(i), video=video, extension="mp4", label=label)
        for i, (video, label) in enumerate(zip(videos, labels, strict=True))
    ]
    other = folder.parent / f"{folder.name}-{name}"
    write_shards(samples, other)
    folder.mkdir(exist_ok=True)
    (other / "000000.tar").rename(folder / f"{name}.tar")
    return folder


def context(data: Path) -> TaskContext:
    clip = LoaderConfig(threads=1, cache_mib=0)
    return TaskContext(name="classify", folder=data, data=data, model=MODEL, clip=clip)


def loaders(train: Path, val: Path, views: int = 1):
    made = context(train.parent)
    return [
        clip_loader(
            made, root.name, loader_config(made, batch_size=4, train=root is train, views=views)
        )
        for root in (train, val)
    ]


def test_equal_keys_in_two_shards_stay_apart(videos, tmp_path):
    """Every clip has logits and a label of its own, whatever it is called."""
    val = put(tmp_path / "val", videos[:4], [0, 1, 0, 1])
    put(val, videos[4:], [1, 0, 1, 0], "1")
    train = put(tmp_path / "train", videos[:4], [0, 1, 0, 1])
    torch.manual_seed(0)
    model = VideoClassifier(MODEL, num_classes=2).eval()
    first, second = loaders(train, val, views=2)
    with first, second, torch.inference_mode():
        task = ClassifyTask(context(tmp_path), ClassifyConfig(views=2), model, first, second)
        logits, labels = task.predict()
        assert labels.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
        for i, row in enumerate(logits):
            clips = [second.load([second.sampler.clip(i, view=v)]).video for v in range(2)]
            expected = model(torch.cat(clips).transpose(1, 2)).float().mean(0)
            torch.testing.assert_close(row, expected)
        source, labels = feature_table(model, second, 1, torch.device("cpu"))
    assert source.features.shape[1] == 8 and source.keys == sorted([*"0123"] * 2)
    assert labels.tolist() == [0, 1, 1, 0, 0, 1, 1, 0]


def labelled(split: Path):
    index = ShardIndex.open(split)
    return index.labels, index.classes


def test_the_head_counts_what_is_trained(videos, tmp_path):
    """Labels of a data set whose classes are in alphabetical order, held-out ones among them."""
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    train = put(tmp_path / "train", videos[:4], [1, 3, 1, 3])
    val = put(tmp_path / "val", videos[4:], [3, 1, 4, -1])
    assert trained_classes(*labelled(train)).names == ["b", "d"]
    torch.manual_seed(0)
    model = VideoClassifier(MODEL, num_classes=2)
    first, second = loaders(train, val)
    with first, second, torch.inference_mode():
        settings = ClassifyConfig(balanced=True, mixup=0.0)
        task = ClassifyTask(context(tmp_path), settings, model.eval(), first, second)
        logits, targets = task.predict()
        # Class e is not trained on, and the last clip has no label: neither has a right output.
        assert targets.tolist() == [1, 0, -1, -1]
        scores = task.evaluate()
        right = (logits[:2].argmax(1) == targets[:2]).float().mean()
        assert scores["top1"] == float(right)
        batch = next(task.batches())
        loss, clips, _ = task.loss(batch, torch.Generator().manual_seed(0))
        assert clips == 4 and bool(loss.isfinite())
