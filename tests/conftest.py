"""Tests that run side by side share out the cores, and threads that wait leave them to others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stmeta import _openmp

os.environ.update(_openmp.asleep())


def pytest_configure() -> None:
    import torch

    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the programs that tests start


@pytest.fixture(scope="session")
def tiny_motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in clips, a few of each class, made once for all workers: read only."""
    from stmeta.data.datasets import motions

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder lies in that of the whole run
        root = root.parent
    return motions.build(root / "tiny_motions", size="tiny", workers=1)  # others wait for the first
