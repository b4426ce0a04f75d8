"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder for what can be made again: $STMETA_CACHE, or stmeta in the user's cache folder."""
    if path := os.environ.get("STMETA_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stmeta"
