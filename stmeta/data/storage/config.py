"""How shards at an address are read: the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How shards are read that lie at an address; local folders need none of this."""

    tries: int = 5
    """Requests for the same bytes before the run stops."""
    timeout_seconds: float = 30.0
    """After this, a request (of 8 MiB at most) counts as failed, also if bytes still trickle in."""
    backoff_seconds: float = 0.5
    """Wait before the second try; it doubles from try to try, up to 30 s, and varies by chance."""
    cache_gib: float = 8.0
    """Disk space for what was read; 0 = nothing is kept. The least recently used goes first."""
    cache_dir: Path | None = None
    """Folder for it, which several processes may share; "shards" in the user's cache if left out
    ($STMETA_CACHE, or stmeta in $XDG_CACHE_HOME or ~/.cache)."""
    block_mib: float = 4.0
    """With a disk cache, shards are read in blocks of this size; without, as a clip needs."""

    def __post_init__(self) -> None:
        rules = {
            "tries": (self.tries >= 1, "1 or more"),
            "timeout_seconds": (self.timeout_seconds > 0, "above 0"),
            "backoff_seconds": (self.backoff_seconds >= 0, "0 or more"),
            "cache_gib": (self.cache_gib >= 0, "0 or more"),
            "block_mib": (2**-10 <= self.block_mib <= 64, "in [1/1024, 64]"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(
                    f"StorageConfig: {name} must be {rule}, got {getattr(self, name)!r}"
                )
