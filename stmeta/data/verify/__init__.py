"""Verifies shards, and shows what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmeta._util.lazy_names import lazy_names

if TYPE_CHECKING:
    from stmeta.data.verify.inspect import find_sample as find_sample
    from stmeta.data.verify.inspect import summarise as summarise
    from stmeta.data.verify.verifier import VerifyReport as VerifyReport
    from stmeta.data.verify.verifier import verify as verify
    from stmeta.data.verify.video import LEVELS as LEVELS

__all__ = [
    "LEVELS",
    "VerifyReport",
    "find_sample",
    "summarise",
    "verify",
]
_MODULES = {
    "LEVELS": "video",
    "VerifyReport": "verifier",
    "find_sample": "inspect",
    "summarise": "inspect",
    "verify": "verifier",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _MODULES)
