"""A loader's threads end, whichever way the loader does."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stmeta.data.loading.loader import ClipLoader
from tests.data._loading import config, split

__all__ = ["split"]  # a fixture


def test_threads_end(split):
    def ours() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("stmeta")}

    assert not ours()
    with ClipLoader(split, config()) as loader:
        assert not ours()  # nothing runs before the first batch
        next(iter(loader))
        assert ours()
    assert not ours()
    loader.close()
    with pytest.raises(ValueError, match="it was closed"):
        next(iter(loader))


def test_a_forgotten_loader_stops_its_threads(split):
    loader = ClipLoader(split, config())
    next(iter(loader))
    del loader
    gc.collect()
    deadline = time.monotonic() + 60
    while any(t.name.startswith("stmeta") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_ends_a_program_that_never_closes_its_loader(split):
    code = (
        "import signal, sys\n"
        # A shell starts background jobs with Ctrl-C ignored, and they hand that on.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stmeta.data.loading.loader import ClipLoader, LoaderConfig\n"
        "loader = ClipLoader(sys.argv[1], LoaderConfig(batch_size=4, frames=8, cache_mib=0))\n"
        "while True:\n"
        "    for batch in loader:\n"
        "        print(len(batch), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(split)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == b"4\n"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=180)
    assert b"KeyboardInterrupt" in errors and program.returncode == -signal.SIGINT
