"""What reaches a terminal: text of others without control characters, and pipes that end early."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def plain(text: str, *, lines: bool = False) -> str:
    """Text of others (a server, a file) that moves no cursor, changes no colour and encodes.

    Args:
        text: what cannot be printed in it is written out.
        lines: keep the ends of lines.
    """
    if lines:
        return "\n".join(map(plain, text.split("\n")))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.encode("utf-8", "replace").decode()


@contextmanager
def unbroken() -> Iterator[None]:
    """End in silence where the program that reads our output has ended, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as of a program that the signal ended
