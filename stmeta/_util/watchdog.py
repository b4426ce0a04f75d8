"""Ends processes of ours that somebody stopped (SIGSTOP) and that do not go on.

What waits for a stopped process waits for ever; for one that has ended it does not.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

PATIENCE = 30.0
"""Seconds that a process may be stopped."""
_LOOKS = 10  # as often it must be seen so: this process may have been stopped as well meanwhile


class Watch:
    """Looks after child processes on a thread of its own, while there are any.

    Attributes:
        ended: those that were ended, by their ids.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.ended: set[int] = set()
        self._seen: dict[int, int] = {}  # process -> looks in a row that found it stopped
        self._groups: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, *processes: int) -> None:
        """Watch children of this process until they end.

        Args:
            processes: that share a queue. Where one is ended, all are: it may have held the lock
                of the queue, for which the others would wait for ever.
        """
        with self._lock:
            self.ended -= set(processes)
            self._groups |= dict.fromkeys(processes, processes)
            self._seen |= dict.fromkeys(processes, 0)
            # A thread of the parent is not there after a fork.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True, name="stmeta-watch")
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(PATIENCE / _LOOKS)
            with self._lock:
                for process in list(self._seen):
                    if process in self._seen:  # not ended with another one
                        self._look(process)
                if not self._seen:
                    self._thread = None
                    return

    def _look(self, process: int) -> None:
        status = _status(process)
        if status is None:
            self._forget(process)
            return
        stopped = status == psutil.STATUS_STOPPED
        self._seen[process] = self._seen[process] + 1 if stopped else 0
        if self._seen[process] >= _LOOKS:
            self.ended.add(process)
            for one in self._groups[process]:
                if one in self._seen and _status(one) is not None:
                    os.kill(one, signal.SIGKILL)
                    self._forget(one)

    def _forget(self, process: int) -> None:
        self._seen.pop(process)
        self._groups.pop(process, None)


def _status(process: int) -> str | None:
    """How a child of this process is; None = it has ended, and its number may be another's."""
    try:
        child = psutil.Process(process)
        with child.oneshot():
            return child.status() if child.ppid() == os.getpid() else None
    except psutil.Error:
        return None


WATCH = Watch()
"""The one of this process."""
