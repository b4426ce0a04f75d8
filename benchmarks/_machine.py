"""What a result must say about where it comes from."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def describe(copy: float) -> dict[str, Any]:
    """Machine, versions and commit; `copy` is its copy bandwidth in bytes per second."""
    import stmeta

    triton = importlib.util.find_spec("triton") and importlib.import_module("triton").__version__
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "copy_gb_per_s": copy / 1e9,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "python": platform.python_version(),
        "stmeta": stmeta.__version__,
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted": bool(_output("git", "status", "--porcelain", "--untracked-files=no")),
    }


def default_results() -> Path:
    """Where results go: in the repository those of a GPU, else beside pytest-benchmark's."""
    if not torch.cuda.is_available():
        return Path(".benchmarks/results.json")
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return HERE / "results" / f"{name}.json"


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
