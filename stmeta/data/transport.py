"""Ranges of files at an address: http and https by the standard library, the rest by fsspec.

fsspec reads http through aiohttp, which is not among our requirements, and a range of a file is a
plain request. A transport tries once; `RemoteFolder` tries again.
"""

from __future__ import annotations

import base64
import re
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from typing import Any, Protocol
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from stmeta._errors import BackendUnavailableError

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # of HTTP; others stay as they are


class Unanswered(Exception):
    """This try failed, the next may not.

    Attributes:
        after: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Absent(Exception):
    """There is no such file."""


class Refused(Exception):
    """There will be no other answer than this one."""


class Transport(Protocol):
    """Reads from one kind of place; may be called from many threads.

    Its methods raise `Unanswered`, `Absent` and `Refused`.
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


def open_transport(url: str, timeout: float) -> Transport:
    """Choose by the address; `timeout` is seconds of one request.

    Raises:
        BackendUnavailableError: fsspec needs another package for this address.
        ValueError: the address is not complete, or of a kind that fsspec does not know.
    """
    web_page = url.startswith(("http://", "https://"))
    return HttpTransport(url, timeout) if web_page else FsspecTransport(url, timeout)


def without_password(url: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


class HttpTransport:
    """Range requests."""

    def __init__(self, url: str, timeout: float) -> None:
        """Read below an address, which may hold a name and a password."""
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError(
                f"{without_password(url)}: must be http(s)://host/folder, without ? and #"
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
            *(web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPRedirectHandler),
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
        deadline = time.monotonic() + self._timeout

        def body(response: HTTPResponse) -> bytes:
            first, last, total = _range(response)
            if total != length:
                raise Refused(f"it has {total} bytes, the index was made when it had {length}")
            if (first, last + 1) != (begin, end):
                raise Unanswered(f"the server sent bytes {first} to {last}, others than asked for")
            parts, size = [], 0
            while size < end - begin:
                part = response.read1(min(end - begin - size, 2**20))
                size += len(part)
                if not part:
                    raise Unanswered(f"the answer ends after {size} of {end - begin} bytes")
                if time.monotonic() > deadline and size < end - begin:
                    raise Unanswered(
                        f"{size} of {end - begin} bytes came in {self._timeout:g} seconds"
                    )
                parts.append(part)
            return b"".join(parts)

        return self._request(address, begin, end, body)

    def _request(
        self, address: str, begin: int, end: int, take: Callable[[HTTPResponse], Any]
    ) -> Any:
        request = web.Request(
            address,
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
            kind = Refused if isinstance(cause, ssl.SSLCertVerificationError) else Unanswered
            raise kind(str(getattr(cause, "strerror", None) or cause)) from error
        except (OSError, HTTPException) as error:
            raise Unanswered(str(error) or type(error).__name__) from error


def _range(response: HTTPResponse) -> tuple[int, int, int]:
    """First byte, last byte and length of the file, as an answer states them."""
    if response.status != 206:
        raise Refused(
            f"the server answers {response.status} to a range request: it sends whole files only; "
            "use one that knows ranges, such as nginx, or copy the shards here"
        )
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if found is None or response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("the server's answer to a range request does not say which bytes it holds")
    first, last, total = map(int, found.groups())
    return first, last, total


def _status(error: HTTPError) -> Exception:
    reason = f"the server answers {error.code} {error.reason}"
    if error.code in (404, 410):
        return Absent(reason)
    if error.code not in _TRANSIENT:
        return Refused(reason)
    after = error.headers.get("Retry-After", "")
    return Unanswered(reason, float(after) if after.isdecimal() else 0.0)


class FsspecTransport:
    """Whatever fsspec reads: s3://, gs://, memory:// and others, with its own configuration."""

    def __init__(self, url: str, timeout: float) -> None:
        """Read below an address."""
        from fsspec.core import url_to_fs

        shown = without_password(url)
        try:
            self._files, path = url_to_fs(url)
        except ImportError as error:
            raise BackendUnavailableError(
                f"{shown}: cannot be opened: {error}; install that package, or copy the shards here"
            ) from error
        except ValueError as error:
            raise ValueError(f"{shown}: {error}; see `fsspec.available_protocols()`") from error
        self._path, self._timeout = str(path).rstrip("/"), timeout

    def address(self, name: str, *, above: bool = False) -> str | None:
        """See `Transport`."""
        if not above:
            return f"{self._path}/{name}"
        parent, slash, _ = self._path.rpartition("/")
        return f"{parent}/{name}" if slash else None

    def size(self, address: str) -> int:
        """See `Transport`."""
        return int(self._call(self._files.size, address))

    def get(self, address: str, begin: int, end: int, length: int) -> bytes:
        """See `Transport`."""
        content = self._call(self._files.cat_file, address, begin, end)
        if len(content) != end - begin:
            raise Unanswered(f"the answer has {len(content)} of {end - begin} bytes")
        return content

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return _within(self._timeout, function, *arguments)
        except FileNotFoundError:
            raise Absent("there is no such file") from None
        except (PermissionError, NotImplementedError) as error:
            raise Refused(str(error) or type(error).__name__) from error
        except TimeoutError:
            raise Unanswered(f"no answer in {self._timeout:g} seconds") from None
        except Exception as error:  # each of its packages has errors of its own
            raise Unanswered(f"{type(error).__name__}: {error}") from error


def _within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call on a thread that is left alone if it takes too long: not all packages have a limit."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name="fsspec-read").start()
    return result.result(seconds)
