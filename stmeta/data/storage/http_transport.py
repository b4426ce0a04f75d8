"""Ranges of files at http and https addresses, by the standard library.

fsspec reads http through aiohttp, which is not among our requirements, and a range of a file is a
plain request.
"""

from __future__ import annotations

import base64
import re
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from stmeta.data.storage.deadline import Handler, Redirects, Request
from stmeta.data.storage.transport import NotFound, PermanentError, TransientError, without_password

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # of HTTP; others stay as they are


class HttpTransport:
    """Range requests."""

    def __init__(self, url: str, timeout: float) -> None:
        """Read below an address, which may hold a name and a password."""
        try:
            parts = urlsplit(url)
            complete = parts.hostname and not parts.query and not parts.fragment
            complete = complete and (parts.port or 1) and url.isprintable()
        except ValueError:  # a port that is no number, a bracket that is not closed
            complete = False
        if not complete:
            raise ValueError(
                f"{without_password(url)}: must be http(s)://host/folder, without ? and #; write "
                "those and / and @ of a password as %3F, %23, %2F and %40"
            )
        self._timeout = timeout
        self._base = without_password(url).rstrip("/")
        self._above = self._base.rpartition("/")[0] if parts.path.strip("/") else None
        self._login = ""
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._login = "Basic " + base64.b64encode(login.encode()).decode()
        self._opener = web.OpenerDirector()  # no handler for ftp: and file:, also after redirects
        for handler in (
            *(web.ProxyHandler, Handler, Redirects),
            *(web.HTTPDefaultErrorHandler, web.HTTPErrorProcessor, web.UnknownHandler),
        ):
            self._opener.add_handler(handler())

    def address(self, name: str, *, above: bool = False) -> str | None:
        """See `Transport`."""
        base = self._above if above else self._base
        return base and f"{base}/{quote(name, safe='')}"

    def size(self, address: str) -> int:
        """See `Transport`."""
        # Not HEAD: signed addresses allow GET alone.
        return self._request(address, 0, 1, lambda response: _range(response)[2])

    def get(self, address: str, begin: int, end: int, length: int) -> bytes:
        """See `Transport`."""

        def body(response: HTTPResponse) -> bytes:
            first, last, total = _range(response)
            if total != length:
                raise PermanentError(
                    f"it has {total} bytes, the index was made when it had {length}"
                )
            if (first, last + 1) != (begin, end):
                raise TransientError(
                    f"the server sent bytes {first} to {last}, which were not requested"
                )
            parts, size = [], 0
            while size < end - begin:
                try:
                    part = response.read1(min(end - begin - size, 2**20))
                except TimeoutError:
                    raise TransientError(
                        f"{size} of {end - begin} bytes came in {self._timeout:g} seconds"
                    ) from None
                size += len(part)
                if not part:
                    raise TransientError(f"the answer ends after {size} of {end - begin} bytes")
                parts.append(part)
            return b"".join(parts)

        return self._request(address, begin, end, body)

    def _request(
        self, address: str, begin: int, end: int, take: Callable[[HTTPResponse], Any]
    ) -> Any:
        request = Request(
            address,
            deadline=time.monotonic() + self._timeout,
            headers={
                "Range": f"bytes={begin}-{end - 1}",
                "Accept-Encoding": "identity",
                "User-Agent": "stmeta",
            },
        )
        if self._login:  # must not follow a redirect to somebody else
            request.add_unredirected_header("Authorization", self._login)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return take(response)
        except HTTPError as error:
            with error:
                raise _status(error) from None
        except URLError as error:
            cause = error.reason
            kind = (
                PermanentError
                if isinstance(cause, ssl.SSLCertVerificationError)
                else TransientError
            )
            raise kind(str(getattr(cause, "strerror", None) or cause)) from error
        except TimeoutError:
            raise TransientError(f"no whole answer in {self._timeout:g} seconds") from None
        except (OSError, HTTPException, ValueError) as error:
            raise TransientError(str(error) or type(error).__name__) from error


def _range(response: HTTPResponse) -> tuple[int, int, int]:
    """First byte, last byte and length of the file, as an answer states them."""
    if response.status != 206:
        raise PermanentError(
            f"the server answers {response.status} to a range request: it sends whole files only; "
            "use one that knows ranges, such as nginx, or copy the shards here"
        )
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", stated)
    if found is None or response.headers.get("Content-Encoding", "identity") != "identity":
        raise PermanentError(
            "the server's answer to a range request does not say which bytes it holds"
        )
    first, last, total = map(int, found.groups())
    return first, last, total


def _status(error: HTTPError) -> Exception:
    reason = f"the server answers {error.code} {error.reason}"
    if error.code in (404, 410):
        return NotFound(reason)
    if error.code not in _TRANSIENT:
        return PermanentError(reason)
    retry_after = error.headers.get("Retry-After", "")
    return TransientError(
        reason, float(retry_after) if re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
    )
