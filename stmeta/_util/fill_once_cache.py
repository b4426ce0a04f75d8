"""A cache that admits until it is full and never evicts.

A set that does not fit keeps a stable part in memory, where eviction would drop every video just
before its next use.
"""

from __future__ import annotations

import threading
from typing import Any


class FillOnceCache:
    """Keeps values until a limit in bytes is reached, then admits no more."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()
        self._values: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> Any:
        """The value, or None."""
        return self._values.get(key)

    def reserve(self, nbytes: int) -> bool:
        """Take room for a value that is about to be made; False = it does not fit."""
        with self._lock:
            if self.used + nbytes > self.limit:
                return False
            self.used += nbytes
            return True

    def fill(self, key: Any, value: Any, nbytes: int) -> None:
        """Store a value in the room that was reserved; None gives the room back."""
        with self._lock:
            if value is None or key in self._values:
                self.used -= nbytes
            else:
                self._values[key] = value
