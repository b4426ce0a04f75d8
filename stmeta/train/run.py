"""Puts a run together: folder, data, the tasks in their order, and what they leave behind."""

from __future__ import annotations

import dataclasses
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

import stmeta
from stmeta._errors import DataError
from stmeta.train import distributed, plots
from stmeta.train.checks import check_settings, check_state
from stmeta.train.config import RunConfig
from stmeta.train.run_folder import claimed, device_of, write_config, write_metrics
from stmeta.train.tasks._base import TaskContext
from stmeta.train.trainer import Trainer


def run(config: RunConfig, *, resume: bool, console: Console) -> dict[str, Any]:
    """Run the tasks of a config and write everything to `config.folder`.

    Returns:
        What metrics.json holds: one record per task.

    Raises:
        BackendUnavailableError: the device that was asked for is not there.
        DataError: data, weights or a checkpoint are missing or damaged.
        ValueError: a setting is out of range, or does not fit the data.
    """
    check_settings(config)
    many = distributed.world_size()
    if many > 1 and not any(config.tasks[name].distributed for name in config.order):
        raise ValueError(
            f"{config.recipe}: its tasks are trained by one process, got {many}; run it without "
            "torchrun"
        )
    with claimed(config, resume) if distributed.is_main_process() else nullcontext(config) as mine:
        out = Path(distributed.broadcast(str(mine.folder)))
        return _run(dataclasses.replace(config, out=out), resume, console)


def _run(config: RunConfig, resume: bool, console: Console) -> dict[str, Any]:
    device = device_of(config)
    with distributed.main_process_first():
        data = _data_root(config)
    opened: dict[Any, Any] = {}
    contexts = {
        name: TaskContext(
            name=name,
            folder=config.folder,
            order=config.order,
            data=data,
            model=config.model,
            clip=config.clip,
            seed=config.seed,
            device=device,
            opened=opened,
        )
        for name in config.order
    }
    with stmeta.backend("auto" if config.fused else "eager"):
        for name, context in contexts.items():
            config.tasks[name].check(context)
        if resume:
            check_state(config)
        elif distributed.is_main_process():
            write_config(config)
        console.print(
            f"[bold]{config.recipe}[/] → {config.folder}   {device}, {config.precision}, "
            f"{'fused' if config.fused else 'eager'} ops" + (f", data {data.name}" if data else ""),
            highlight=False,
        )
        records: dict[str, Any] = {}
        for context in contexts.values():
            _train(config, context, resume, console, records)
    if distributed.is_main_process():
        console.print(plots.summary(records))
    console.print(f"plots, weights and metrics are in {config.folder}", highlight=False)
    return records


def _train(
    config: RunConfig, context: TaskContext, resume: bool, console: Console, records: dict[str, Any]
) -> None:
    """Train one task, and add its record to those of the run."""
    task_config = config.tasks[context.name]
    # Small tasks are trained by the first process, as if there were no others.
    with nullcontext(True) if task_config.distributed else distributed.main_process_alone() as mine:
        if not mine:
            return
        with closing(task_config.build(context)) as task:
            if config.compile:
                task.model.compile()
            trainer = Trainer(task, config, device=context.device, console=console)
            record = trainer.run(resume=resume)
            if distributed.is_main_process():
                task.finish(record, config.folder)
                record["result"] = task.describe(record)
                records[context.name] = record
                write_metrics(config, records)
                plots.curves(records, config.folder / "curves.png")
        distributed.barrier()


def _data_root(config: RunConfig) -> Path | None:
    if config.data == "motions":
        from stmeta._util.progress import ProgressBar
        from stmeta.data.datasets import motions

        with ProgressBar() as bar:
            return motions.build(progress=bar)
    if config.data is not None and not config.data.is_dir():
        raise DataError(
            f"data: --data: the folder {config.data} does not exist; videos become a data set with "
            "`stmeta shard`"
        )
    return config.data
