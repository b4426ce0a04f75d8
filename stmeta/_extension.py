"""The compiled extension, `stmeta._C`: the kernels in C++, where they were built."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch  # noqa: F401 - the extension's libraries are those that torch loads

_REMEDY = "build it with `pip install --no-build-isolation -e .` (needs a C++17 compiler)"


def _load() -> tuple[Any, str]:
    path = os.environ.get("STMETA_EXTENSION")  # another build of it: tests/sanitize.sh
    try:
        if path:
            spec: Any = importlib.util.spec_from_file_location("stmeta._C", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module, ""
        return importlib.import_module("stmeta._C"), ""
    except ModuleNotFoundError:
        return None, f"stmeta._C is not built; {_REMEDY}"
    except ImportError as error:
        return None, f"stmeta._C does not load ({error}); {_REMEDY} against this torch"


extension, extension_missing = _load()
"""The extension or None, and why it is missing."""
