"""Folders of runs: config.json, metrics.json, one run at a time, and nothing overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import stmeta
from stmeta._errors import BackendUnavailableError, DataError
from stmeta._util.files import read_small, replaced
from stmeta._util.locks import lock_folder
from stmeta.train.config import RunConfig, from_json, to_json

_CONFIG = "config.json"


def device_of(config: RunConfig) -> torch.device:
    """The device that a run asks for.

    Raises:
        BackendUnavailableError: it is "cuda", and torch finds no GPU.
    """
    if config.device != "auto":
        if config.device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailableError(
                "--device cuda, but torch finds no GPU; use --device cpu or auto"
            )
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_config(folder: Path) -> RunConfig:
    """The config of the run in a folder.

    Raises:
        DataError: there is no run, or its config.json is damaged.
    """
    path = folder / _CONFIG
    if not path.exists():
        raise DataError(
            f"--resume: {folder} holds no run, as it has no {_CONFIG}; name the folder of a run, "
            "or start one without --resume"
        )
    try:
        return from_json(read_small(path))
    except ValueError as error:  # also of the classes that it builds
        raise DataError(
            f"--resume: {path} cannot be used: {error}; mend it, or train again into another --out"
        ) from error


@contextlib.contextmanager
def claimed(config: RunConfig, resume: bool) -> Iterator[RunConfig]:
    """Choose the folder and keep every other run out of it while the block runs.

    A finished or stopped run is never overwritten: without `out`, a free folder is taken. A folder
    that was made here and is still empty at the end goes away again.

    Raises:
        DataError: another run is writing there, or there is none to go on with.
        ValueError: `out` holds a run.
    """
    if resume:
        read_config(config.folder)
    for folder in _candidates(config, resume):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder) as mine:
            held = (folder / _CONFIG).exists() and not resume
            if mine and not held:
                try:
                    yield dataclasses.replace(config, out=folder)
                finally:
                    if made and not any(folder.iterdir()):
                        folder.rmdir()
                return
        if config.out is None and not resume:
            continue
        if mine:
            raise ValueError(
                f"out: {folder} already holds a run; go on with --resume {folder}, or choose "
                "another --out"
            )
        raise DataError(
            f"out: another run is writing to {folder}; wait for its end, or choose another --out"
        )


def _candidates(config: RunConfig, resume: bool) -> Iterator[Path]:
    folder = config.folder
    yield folder
    number = 2
    while config.out is None and not resume:
        yield folder.with_name(f"{folder.name}-{number}")
        number += 1


def write_config(config: RunConfig) -> None:
    """Write config.json: from now on the folder holds a run."""
    _write(config.folder / _CONFIG, to_json(config))


def write_metrics(config: RunConfig, records: dict[str, Any]) -> None:
    """Write metrics.json: the machine, and one record per task."""
    environment = {
        "stmeta": stmeta.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    text = json.dumps({"environment": environment, "stages": records}, indent=1)
    _write(config.folder / "metrics.json", text)


def _write(path: Path, text: str) -> None:
    with replaced(path) as partial:
        partial.write_text(text)
