"""Ranges of files at an address: http and https by the standard library, the rest by fsspec.

fsspec reads http through aiohttp, which is not among our requirements, and a range of a file is a
plain request. A transport tries once; `RemoteFolder` tries again.
"""

from __future__ import annotations

import base64
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Protocol
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from stmeta._errors import BackendUnavailableError
from stmeta._util.terminal import plain

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # of HTTP; others stay as they are


_LONGEST_REASON = 300  # characters of what a server or a package says


class NoAnswer(Exception):
    """Why bytes did not come: in words of others, in part, and so without control characters."""

    def __init__(self, reason: str) -> None:
        cut = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        super().__init__(plain(cut))


class Unanswered(NoAnswer):
    """This try failed, the next may not.

    Attributes:
        after: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Absent(NoAnswer):
    """There is no such file."""


class Refused(NoAnswer):
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
    """An address as it may be shown: without a name, a password, and what moves a cursor."""
    scheme, mark, rest = url.partition("://")
    where = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in where:
        rest = where.rpartition("@")[2] + rest[len(where) :]
    elif "@" in rest and not re.fullmatch(r"[^:]*(:\d*)?|\[[0-9a-fA-F:.]*\](:\d*)?", where):
        rest = rest.rpartition("@")[2]  # one of / ? # in a password seemed to end the host
    return plain(f"{scheme}{mark}{rest}")


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
            *(web.ProxyHandler, _Handler, _Redirects),
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
                raise Refused(f"it has {total} bytes, the index was made when it had {length}")
            if (first, last + 1) != (begin, end):
                raise Unanswered(f"the server sent bytes {first} to {last}, others than asked for")
            parts, size = [], 0
            while size < end - begin:
                try:
                    part = response.read1(min(end - begin - size, 2**20))
                except TimeoutError:
                    raise Unanswered(
                        f"{size} of {end - begin} bytes came in {self._timeout:g} seconds"
                    ) from None
                size += len(part)
                if not part:
                    raise Unanswered(f"the answer ends after {size} of {end - begin} bytes")
                parts.append(part)
            return b"".join(parts)

        return self._request(address, begin, end, body)

    def _request(
        self, address: str, begin: int, end: int, take: Callable[[HTTPResponse], Any]
    ) -> Any:
        request = _Request(
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
            kind = Refused if isinstance(cause, ssl.SSLCertVerificationError) else Unanswered
            raise kind(str(getattr(cause, "strerror", None) or cause)) from error
        except TimeoutError:
            raise Unanswered(f"no whole answer in {self._timeout:g} seconds") from None
        except (OSError, HTTPException, ValueError) as error:
            raise Unanswered(str(error) or type(error).__name__) from error


def _range(response: HTTPResponse) -> tuple[int, int, int]:
    """First byte, last byte and length of the file, as an answer states them."""
    if response.status != 206:
        raise Refused(
            f"the server answers {response.status} to a range request: it sends whole files only; "
            "use one that knows ranges, such as nginx, or copy the shards here"
        )
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", stated)
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
    return Unanswered(reason, float(after) if re.fullmatch("[0-9]{1,9}", after) else 0.0)


class _Request(web.Request):
    """A request that must be answered as a whole until `deadline`, redirects included."""

    def __init__(self, url: str, *, deadline: float, **options: Any) -> None:
        super().__init__(url, **options)
        self.deadline = deadline


class _Redirects(web.HTTPRedirectHandler):
    def redirect_request(self, req: Any, *answer: Any) -> web.Request | None:
        # Or all that the server sends beside the new address would be read, however much it is.
        answer[0].read = bytes
        new = super().redirect_request(req, *answer)
        if new is None:
            return None
        headers = {k: v for k, v in new.header_items() if k not in new.unredirected_hdrs}
        return _Request(new.full_url, deadline=req.deadline, headers=headers)


class _Handler(web.HTTPHandler, web.HTTPSHandler):
    """Opens http and https with the deadline of the request."""

    def http_open(self, req: Any) -> HTTPResponse:
        return self._open(HTTPConnection, req)

    def https_open(self, req: Any) -> HTTPResponse:
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
