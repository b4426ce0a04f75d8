"""Requests of urllib that end at a deadline, redirects and headers included.

A timeout of a socket begins anew with each byte that arrives, so a server could keep a request open
for ever.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib import request as web


class Request(web.Request):
    """A request that must be answered as a whole until `deadline`, redirects included."""

    def __init__(self, url: str, *, deadline: float, **options: Any) -> None:
        super().__init__(url, **options)
        self.deadline = deadline


class Redirects(web.HTTPRedirectHandler):
    """Follows redirects with the deadline of the first request."""

    def redirect_request(self, req: Any, *answer: Any) -> web.Request | None:
        """See urllib; the answer's body is not read."""
        # Or all that the server sends beside the new address would be read, however much it is.
        answer[0].read = bytes
        new = super().redirect_request(req, *answer)
        if new is None:
            return None
        headers = {k: v for k, v in new.header_items() if k not in new.unredirected_hdrs}
        return Request(new.full_url, deadline=req.deadline, headers=headers)


class Handler(web.HTTPHandler, web.HTTPSHandler):
    """Opens http and https with the deadline of the request."""

    def http_open(self, req: Any) -> HTTPResponse:
        """See urllib."""
        return self._open(HTTPConnection, req)

    def https_open(self, req: Any) -> HTTPResponse:
        """See urllib."""
        return self._open(HTTPSConnection, req)

    def _open(self, kind: Callable[..., HTTPConnection], req: Any) -> HTTPResponse:
        req.timeout = _left(req.deadline)

        def connect(host: str, **options: Any) -> HTTPConnection:
            connection = kind(host, **options)
            connection.response_class = partial(_Response, deadline=req.deadline)  # type: ignore
            return connection

        return self.do_open(connect, req)  # type: ignore[arg-type]


class _Response(HTTPResponse):
    """An answer whose every byte, those of the header too, comes until a deadline.

    A socket's own limit begins anew with each byte that arrives.
    """

    def __init__(self, sock: socket.socket, *options: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *options, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Stream(sock, deadline))


class _Stream(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    """Seconds until a deadline.

    Raises:
        TimeoutError: it is over.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
