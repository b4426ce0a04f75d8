"""A worker that is stopped; beside the other tests of the kind, as a worker loads this file."""

from __future__ import annotations

import os
import signal
import time

from stmeta._util import watchdog
from stmeta._util.workers import ordered_map


def slow(number: int) -> int:
    time.sleep(0.2)
    return os.getpid() if number < 0 else number


def test_a_worker_that_is_stopped_costs_no_item(monkeypatch):
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    found = []
    for item, result in ordered_map(slow, [-1, 0, 1], 2):
        if item < 0:
            os.kill(result, signal.SIGSTOP)
        else:
            found.append((item, result))
    assert found == [(0, 0), (1, 1)]


def wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_a_worker_that_is_stopped_while_it_holds_the_queue(monkeypatch):
    """The only idle one does. All results are there, and the other one waits for its end."""
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    found = []
    for item, process in ordered_map(wait, [0, 0.5], 2):
        found.append(item)
        if item == 0:
            os.kill(process, signal.SIGSTOP)
    assert found == [0, 0.5]
