"""Where time goes, added up over threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Timers:
    """Seconds and counts, added up over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0.0) + amount

    def update(self, sums: Mapping[str, float]) -> None:
        """Add what another process added up."""
        for name, amount in sums.items():
            self.add(name, amount)

    def sums(self) -> dict[str, float]:
        """All sums so far, by name."""
        with self._lock:
            return dict(self._sums)

    def __getitem__(self, name: str) -> float:
        return self._sums.get(name, 0.0)
