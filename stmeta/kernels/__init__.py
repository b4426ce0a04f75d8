"""Kernels in Python, one folder per language. They import nothing else of stmeta.

In a checkout the sources lie in `<root>/kernels`, and in a wheel inside this package; both import
as `stmeta.kernels.triton.<op>`.
"""

from __future__ import annotations

from pathlib import Path

_root = Path(__file__).resolve().parents[2]
if (_root / "csrc").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root / "kernels"))
