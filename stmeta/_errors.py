"""Errors that callers may want to catch by type. Wrong arguments raise plain `ValueError`."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """The named backend cannot run here; the message gives the reason and the remedy."""


class DataError(RuntimeError):
    """Data on disk is missing, broken or too often unreadable to go on."""
