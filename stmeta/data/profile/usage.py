"""CPU time and memory of this process and of those that it started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """What processes used until now.

    Attributes:
        cpu_seconds: of each process, by its number.
        rss_bytes: memory of all; pages that they share count more than once.
    """

    cpu_seconds: dict[int, float]
    rss_bytes: int

    def cpu_since(self, before: Usage) -> float:
        """CPU seconds between two moments; of processes that ended, none."""
        then = before.cpu_seconds
        return sum(now - then.get(number, 0.0) for number, now in self.cpu_seconds.items())


def usage() -> Usage:
    """Of this process and its children."""
    mine = psutil.Process()
    cpu: dict[int, float] = {}
    rss = 0
    for process in (mine, *mine.children()):
        try:
            with process.oneshot():
                spent, memory = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:  # it has ended
            continue
        cpu[process.pid] = spent.user + spent.system
        rss += memory.rss
    cpu[mine.pid] = time.process_time()  # finer
    return Usage(cpu, rss)


def free_memory() -> int:
    """Bytes that can be used without swapping."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:  # a container's own limit, which psutil does not know
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # there is none, or it is "max"
        return free
