"""Folders of runs: config.json, metrics.json, and nothing overwritten."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import torch

import stmeta
from stmeta.config import RunConfig, to_json

Run = TypeVar("Run", bound=RunConfig)


def device_of(config: RunConfig) -> torch.device:
    """The device that a run asks for."""
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def claim_folder(config: Run, resume: bool) -> Run:
    """Choose the folder and write config.json; a finished or stopped run is never overwritten."""
    folder = config.folder
    if not resume and (folder / "config.json").exists():
        if config.out is not None:
            raise ValueError(
                f"out: {folder} already holds a run; go on with --resume {folder}, or choose "
                "another --out"
            )
        number = 2
        while (folder.with_name(f"{folder.name}-{number}") / "config.json").exists():
            number += 1
        config = dataclasses.replace(config, out=folder.with_name(f"{folder.name}-{number}"))
        folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        _write(folder / "config.json", to_json(config))
    return config


def write_metrics(config: RunConfig, records: dict[str, Any]) -> None:
    """Write metrics.json: the machine, and one record per stage."""
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
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)
