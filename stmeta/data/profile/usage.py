"""CPU time and memory of this process and of those that it started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


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


def usage() -> Usage | None:
    """Of this process and its children; None where the system has no /proc."""
    mine, ticks, page = os.getpid(), os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    cpu: dict[int, float] = {}
    rss = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # it has ended
            continue
        # The name of the program, in brackets, may hold anything; proc(5) numbers fields from 1.
        fields = text[text.rindex(")") + 2 :].split()
        number, parent = int(path.parent.name), int(fields[4 - 3])
        if mine in (number, parent):
            cpu[number] = (int(fields[14 - 3]) + int(fields[15 - 3])) / ticks
            rss += int(fields[24 - 3]) * page
    if mine not in cpu:
        return None
    cpu[mine] = time.process_time()  # finer
    return Usage(cpu, rss)


def free_memory() -> int | None:
    """Bytes that can be used without swapping; None where the system does not tell."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    group = Path("/sys/fs/cgroup")
    try:  # a container's own limit
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # there is none, or it is "max"
        pass
    return min(found, default=None)
