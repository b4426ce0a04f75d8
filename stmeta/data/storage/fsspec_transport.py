"""Ranges of files at every other kind of address, by fsspec."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from stmeta._errors import BackendUnavailableError
from stmeta.data.storage.transport import NotFound, PermanentError, TransientError, without_password


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
            raise TransientError(f"the answer has {len(content)} of {end - begin} bytes")
        return content

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return _within(self._timeout, function, *arguments)
        except FileNotFoundError:
            raise NotFound("there is no such file") from None
        except (PermissionError, NotImplementedError) as error:
            raise PermanentError(str(error) or type(error).__name__) from error
        except TimeoutError:
            raise TransientError(f"no answer in {self._timeout:g} seconds") from None
        except Exception as error:  # each of its packages has errors of its own
            raise TransientError(f"{type(error).__name__}: {error}") from error


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
