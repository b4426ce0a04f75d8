"""Tests that run side by side share out the cores, and threads that wait leave them to others."""

from __future__ import annotations

import os

from stmeta import _openmp

os.environ.update(_openmp.asleep())


def pytest_configure() -> None:
    import torch

    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the programs that tests start
