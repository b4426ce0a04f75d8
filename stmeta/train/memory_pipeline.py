"""Puts a run of a memory alone together: task, memory, training, pictures."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn

import stmeta
from stmeta._errors import DataError
from stmeta.data.datasets.omniglot import load_omniglot
from stmeta.data.episodes import sequences
from stmeta.data.episodes.images import ImageEpisodes
from stmeta.memory import DNCCell, LSTMCell, MANNCell, NTMCell
from stmeta.models.mann import FewShotConfig
from stmeta.models.sequence import (
    Cell,
    EncodedFewShot,
    EncodedSequence,
    ImageEncoder,
    SequenceModel,
)
from stmeta.train import distributed
from stmeta.train import memory_plots as memory_report
from stmeta.train.checks import check_settings, check_state
from stmeta.train.config import MemoryConfig
from stmeta.train.memory_stages import EpisodeStage, TaskStage
from stmeta.train.run_folder import claimed, device_of, write_config, write_metrics
from stmeta.train.trainer import Trainer


def run(config: MemoryConfig, *, resume: bool, console: Console) -> dict[str, Any]:
    """Train a memory and write everything to `config.folder`.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: the task is "omniglot" and its folder is not given or does not fit.
        ValueError: started by torchrun on several processes.
    """
    if distributed.world_size() > 1:
        raise ValueError(
            f"{config.recipe}: a memory alone is trained by one process, got "
            f"{distributed.world_size()}; run it without torchrun"
        )
    if config.task == "omniglot" and config.data is None:
        raise DataError(
            "data: Omniglot is not part of stmeta; pass --data FOLDER with images_background.zip "
            "and images_evaluation.zip from github.com/brendenlake/omniglot"
        )
    check_settings(config)
    with claimed(config, resume) as mine:
        return _run(mine, resume, console)


def _run(config: MemoryConfig, resume: bool, console: Console) -> dict[str, Any]:
    device = device_of(config)
    with stmeta.backend("auto" if config.fused else "eager"):
        torch.manual_seed(config.seed)
        make = _episodes if config.task == "omniglot" else _sequences
        stage = make(config, device)
        if resume:
            check_state(config, (stage.name,))
        else:
            write_config(config)
        console.print(
            f"[bold]{config.recipe}[/] → {config.folder}   {device}, {config.precision}, "
            f"{'fused' if config.fused else 'eager'} ops, {config.memory} on {config.task}",
            highlight=False,
        )
        if config.compile:
            stage.model.compile()
        record = Trainer(stage, config, device=device, console=console).run(resume=resume)
        write_metrics(config, {stage.name: record})
        memory_report.pictures(stage, record, config.folder)
    console.print(memory_report.summary(stage, record))
    console.print(f"pictures, weights and metrics are in {config.folder}", highlight=False)
    return record


def make_cell(config: MemoryConfig, in_dim: int) -> Cell:
    """The memory that a config names."""
    if config.memory == "mann":
        return MANNCell(in_dim, config.mann)
    if config.memory == "ntm":
        return NTMCell(in_dim, config.ntm)
    if config.memory == "dnc":
        return DNCCell(in_dim, config.dnc)
    return LSTMCell(in_dim, config.lstm_hidden)


def _episodes(config: MemoryConfig, device: torch.device) -> EpisodeStage:
    assert config.data is not None
    load = partial(load_omniglot, config.data, size=config.image_size)
    # Rotations make more classes to learn from; the test classes are those of the paper, as drawn.
    train, test = load(part="train"), load(part="test", rotations=False)
    same: dict[str, Any] = {"ways": config.ways, "instances": config.instances}
    loaders = (
        ImageEpisodes(
            train.images,
            names=train.names,
            episodes=config.steps * config.batch_size,
            batch_size=config.batch_size,
            shift=config.shift,
            rotation=config.rotation,
            seed=config.seed,
            **same,
        ),
        ImageEpisodes(
            test.images,
            names=test.names,
            episodes=config.test_episodes,
            batch_size=64,
            seed=config.seed + 1,
            **same,
        ),
    )
    pixels = config.image_size**2
    if config.encoder:
        width = config.encoder[-1]
        encoder = ImageEncoder(config.image_size, config.filters, config.encoder)
        if config.memory in ("mann", "lstm"):
            sizes = config.mann
            if config.memory == "lstm":
                sizes = dataclasses.replace(sizes, hidden=config.lstm_hidden)
            head = FewShotConfig(memory=config.memory, mann=sizes, augment=config.augment)
            model: nn.Module = EncodedFewShot(encoder, width, config.ways, head)
        else:
            cell = make_cell(config, 2 * width + config.ways)
            model = EncodedSequence(encoder, width, config.ways, cell)
    else:
        model = SequenceModel(make_cell(config, pixels + config.ways), config.ways)
    return EpisodeStage(model.to(device), config, *loaders)


def _sequences(config: MemoryConfig, device: torch.device) -> TaskStage:
    make, longest, shortest, extra = {
        "copy": (sequences.copy_task, "max_length", "min_length", {}),
        "repeat_copy": (
            sequences.repeat_copy_task,
            "max_length",
            "min_length",
            {"scale_repeats": (1, 10)},
        ),
        "recall": (sequences.associative_recall_task, "max_items", "min_items", {}),
    }[config.task]

    def task(batch_size: int, seed: int, **lengths: int) -> Any:
        return partial(make, batch_size=batch_size, bits=config.bits, seed=seed, **extra, **lengths)

    train = task(config.batch_size, config.seed, **{longest: config.max_length})
    tests = {
        length: task(64, config.seed + 1, **{longest: length, shortest: length})
        for length in config.test_lengths
    }
    batch = train(0)
    cell = make_cell(config, batch.x.shape[2])
    model = SequenceModel(cell, batch.target.shape[2]).to(device)
    return TaskStage(model, config, train, tests)
