"""Puts a run together: folders, data, the stages in their order, and what they leave behind."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

import stmeta
from stmeta._errors import DataError
from stmeta.data.episodes.clips import EpisodeLoader, EpisodeSampler
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.classes import trained_classes
from stmeta.data.shards.writer import ShardIndex
from stmeta.models.classifier import VideoClassifier
from stmeta.models.mann import FewShotMANN
from stmeta.models.video_mae import VideoMAE
from stmeta.train import distributed
from stmeta.train import plots as report
from stmeta.train.checks import StageChecks, check_settings, check_state, load_encoder
from stmeta.train.config import ClassifyConfig, TrainConfig
from stmeta.train.run_folder import claimed, device_of, write_config, write_metrics
from stmeta.train.stage_loaders import clip_loader, loader_config
from stmeta.train.stages import (
    ClassifyStage,
    FewShotStage,
    PretrainStage,
    to_model,
)
from stmeta.train.trainer import Trainer


def run(config: TrainConfig, *, resume: bool, console: Console) -> dict[str, Any]:
    """Run the stages of a config and write everything to `config.folder`.

    Returns:
        What metrics.json holds: one record per stage.
    """
    check_settings(config)
    with claimed(config, resume) if distributed.is_first() else nullcontext(config) as mine:
        out = Path(distributed.share(str(mine.folder)))
        return _run(dataclasses.replace(config, out=out), resume, console)


def _run(config: TrainConfig, resume: bool, console: Console) -> dict[str, Any]:
    device = device_of(config)
    with distributed.first_alone():
        data = _data_root(config)
    make = partial(loader_config, config.clip, config.model, seed=config.seed, device=device)
    StageChecks(config, data).run(make)
    if resume:
        check_state(config, config.stage)
    elif distributed.is_first():
        write_config(config)
    console.print(
        f"[bold]{config.recipe}[/] → {config.folder}   {device}, {config.precision}, "
        f"{'fused' if config.fused else 'eager'} ops, data {data.name}",
        highlight=False,
    )
    records: dict[str, Any] = {}
    with stmeta.backend("auto" if config.fused else "eager"):
        for name in config.stage:
            if name == "fewshot" and not distributed.is_first():
                continue  # its episodes are few and small: one process trains on them
            runner = {"pretrain": _pretrain, "fewshot": _fewshot}.get(name, _classify)
            record = runner(_Context(config, data, device, console, name, resume))
            records[name] = record
            if distributed.is_first():
                write_metrics(config, records)
                report.curves(records, config.folder / "curves.png")
            distributed.wait()
    if distributed.is_first():
        console.print(report.summary(records))
    console.print(f"pictures, weights and metrics are in {config.folder}", highlight=False)
    return records


@dataclasses.dataclass(frozen=True)
class _Context:
    config: TrainConfig
    data: Path
    device: torch.device
    console: Console
    stage: str
    resume: bool

    def loader(
        self, split: str, *, batch_size: int, train: bool, seed_offset: int = 0, views: int = 1
    ) -> ClipLoader:
        return clip_loader(
            self.data / split,
            self.config.clip,
            self.config.model,
            batch_size=batch_size,
            train=train,
            views=views,
            seed=self.config.seed + seed_offset,
            device=self.device,
        )

    def train(self, stage: Any) -> dict[str, Any]:
        if self.config.compile:
            stage.model.compile()
        trainer = Trainer(stage, self.config, device=self.device, console=self.console)
        return trainer.run(resume=self.resume)


def _pretrain(context: _Context) -> dict[str, Any]:
    settings = context.config.pretrain
    torch.manual_seed(context.config.seed)
    model = VideoMAE(context.config.model, norm_pix=settings.norm_pix).to(context.device)
    size = settings.batch_size
    with (
        context.loader("train", batch_size=size, train=True) as train,
        context.loader("val", batch_size=size, train=False) as val,
    ):
        stage = PretrainStage(model, settings, train, val)
        record = context.train(stage)
        if not distributed.is_first():
            return record
        batch = next(stage.val_batches())
        video = to_model(batch, context.device)[:1]
        model.eval()
        original, masked, rebuilt = model.reconstruct(
            video, mask_ratio=settings.mask_ratio, generator=torch.Generator().manual_seed(0)
        )
        picture = context.config.folder / "reconstruction.png"
        report.reconstruction(original[0], masked[0], rebuilt[0], picture)
        record["skipped"] = _skipped(train, val)
    return record


def _classify(context: _Context) -> dict[str, Any]:
    settings: ClassifyConfig = getattr(context.config, context.stage)
    size = settings.batch_size
    with (
        context.loader("train", batch_size=size, train=True, seed_offset=1) as train,
        context.loader("val", batch_size=size, train=False, views=settings.views) as val,
    ):
        classes = _classes_of(train.index)
        torch.manual_seed(context.config.seed)
        encoder = dataclasses.replace(
            context.config.model, drop_path=settings.drop_path, dropout=settings.dropout
        )
        model = VideoClassifier(encoder, num_classes=len(classes)).to(context.device)
        if settings.init == "pretrain":
            flag = f"--{context.stage}.init".replace("_", "-")
            load_encoder(model, context.config.folder / "pretrain" / "last.safetensors", flag)
        stage = ClassifyStage(context.stage, model, settings, train, val)
        record = context.train(stage)
        if not distributed.is_first():
            return record
        model.eval()
        with torch.inference_mode():
            logits, labels = stage.predict()
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        record["final"] |= bootstrap_macro_f1(logits.argmax(1), labels, len(classes))
        record["chance"] = 1 / len(classes)
        record["skipped"] = _skipped(train, val)
        name = "confusion.png" if context.stage == "classify" else f"confusion_{context.stage}.png"
        report.confusion(labels, logits.argmax(1), classes, context.config.folder / name)
    return record


def _fewshot(context: _Context) -> dict[str, Any]:
    settings, config = context.config.fewshot, context.config
    size = config.classify.batch_size
    torch.manual_seed(config.seed)
    encoder = VideoClassifier(context.config.model, num_classes=1).to(context.device)
    if settings.encoder != "scratch":
        path = config.folder / settings.encoder / "last.safetensors"
        load_encoder(encoder, path, "--fewshot.encoder")
    encoder.eval()
    tables = {}
    for split, views, train in (("train", settings.views, True), ("heldout", 1, False)):
        with context.loader(split, batch_size=size, train=train, seed_offset=2) as loader:
            tables[split] = _feature_table(encoder, loader, views, context.device)
    torch.manual_seed(config.seed)
    model = FewShotMANN(context.config.model.dim, settings.ways, settings.head).to(context.device)
    loaders = [
        EpisodeLoader(
            EpisodeSampler(
                labels.numpy(),
                ways=settings.ways,
                instances=settings.instances,
                seed=config.seed + (split == "heldout"),
            ),
            features=features,
            keys=keys,
            batch_size=settings.batch_size,
            episodes=settings.test_episodes if split == "heldout" else settings.episodes,
        )
        for split, (features, labels, keys) in tables.items()
    ]
    record = context.train(FewShotStage(model, settings, *loaders))
    record["chance"] = 1 / settings.ways
    report.instances(record["final"], settings.ways, config.folder / "fewshot.png")
    return record


@torch.inference_mode()
def _feature_table(
    model: VideoClassifier, loader: ClipLoader, views: int, device: torch.device
) -> tuple[Tensor, Tensor, list[str]]:
    """Features [views, n, D] of the videos of a split, labels [n] and keys [n], in key order.

    View v of a training split is another random clip and crop of every video.
    """
    table: dict[int, list[Tensor]] = {}  # by position: two shards may use the same key
    for view in range(views):
        for batch in loader.sweep(view):
            assert batch.sample is not None
            features = model.features(to_model(batch, device)).float().cpu()
            for sample, row in zip(batch.sample.tolist(), features, strict=True):
                table.setdefault(sample, []).append(row)
    keys = loader.index.keys
    # A video that could not be read every time is left out.
    whole = [sample for sample, rows in table.items() if len(rows) == views]
    whole.sort(key=lambda sample: (keys[sample], sample))
    stacked = torch.stack([torch.stack(table[sample]) for sample in whole], dim=1)
    labels = torch.from_numpy(loader.index.labels[whole])
    return stacked, labels, [keys[sample] for sample in whole]


def bootstrap_macro_f1(
    predicted: Tensor, labels: Tensor, classes: int, *, rounds: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Macro F1 and its 95 % interval over resampled clips (percentile bootstrap, Efron 1979).

    Args:
        predicted: int64 [n], predicted classes.
        labels: int64 [n], true classes; -1 = unlabelled, left out.
        classes: number of classes.
        rounds: resamplings.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    pairs = predicted[labels >= 0].numpy(), labels[labels >= 0].numpy()

    def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
        arguments = torch.from_numpy(predicted), torch.from_numpy(labels)
        return float(multiclass_f1_score(*arguments, classes, average="macro"))

    exact = low = high = macro_f1(*pairs)
    if len(pairs[0]) > 1:  # all resamplings of a single clip are the same
        low, high = bootstrap(
            pairs,
            macro_f1,
            n_resamples=rounds,
            batch=100,  # of the resamplings that are in memory at a time
            vectorized=False,
            paired=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return {"macro_f1": exact, "macro_f1_low": float(low), "macro_f1_high": float(high)}


def _classes_of(index: ShardIndex) -> list[str]:
    """Names of the classes that the training split has samples of, in the order of the labels."""
    return trained_classes(index.labels, index.classes).names


def _skipped(*loaders: ClipLoader) -> list[dict[str, str]]:
    return [skip._asdict() for loader in loaders for skip in loader.skipped]


def _data_root(config: TrainConfig) -> Path:
    if config.data is not None:
        if not config.data.is_dir():
            raise DataError(
                f"data: --data: the folder {config.data} does not exist; make it with "
                "`stmeta shard`"
            )
        return config.data
    from stmeta._util.progress import ProgressBar
    from stmeta.data.datasets import motions

    with ProgressBar() as bar:
        return motions.build(progress=bar)
