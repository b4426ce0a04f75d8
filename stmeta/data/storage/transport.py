"""How bytes come from an address: what a transport is, and why it fails.

A transport tries once; `RemoteFolder` retries.
"""

from __future__ import annotations

import re
from typing import Protocol

from stmeta._util.terminal import plain

_LONGEST_REASON = 300  # characters of what a server or a package says


class TransportError(Exception):
    """Why bytes did not come: in words of others, in part, and so without control characters."""

    def __init__(self, reason: str) -> None:
        cut = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        super().__init__(plain(cut))


class TransientError(TransportError):
    """This try failed, the next may not.

    Attributes:
        retry_after: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NotFound(TransportError):
    """There is no such file."""


class PermanentError(TransportError):
    """There will be no other answer than this one."""


class Transport(Protocol):
    """Reads from one kind of place; may be called from many threads.

    Its methods raise `TransientError`, `NotFound` and `PermanentError`.
    """

    def address(self, name: str, *, above: bool = False) -> str | None:
        """Where a file of the folder, or of the one above, lies; None = nothing is above."""
        ...

    def size(self, address: str) -> int:
        """Bytes of a file."""
        ...

    def get(self, address: str, begin: int, end: int, length: int) -> bytes:
        """Bytes begin ... end - 1 of a file that should have `length` bytes."""
        ...


def without_password(url: str) -> str:
    """An address as it may be shown: without a name, a password, and what moves a cursor."""
    scheme, mark, rest = url.partition("://")
    where = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in where:
        rest = where.rpartition("@")[2] + rest[len(where) :]
    elif "@" in rest and not re.fullmatch(r"[^:]*(:\d*)?|\[[0-9a-fA-F:.]*\](:\d*)?", where):
        rest = rest.rpartition("@")[2]  # one of / ? # in a password seemed to end the host
    return plain(f"{scheme}{mark}{rest}")
