"""A server that wants to hold us up, to confuse us, or to write to our terminal."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from stmeta.data.storage.http_transport import HttpTransport
from stmeta.data.storage.transport import (
    NotFound,
    PermanentError,
    TransientError,
    TransportError,
    without_password,
)

TIMEOUT = 0.6
HEAD = b"HTTP/1.1 206 Partial Content\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does one thing with every connection; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    def talk(client: socket.socket) -> None:
        with client:
            try:
                client.recv(4096)
                answer(client)
            except OSError:  # the other side has left, which is what is tested
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/set"
    finally:
        done.set()
        listener.close()


def drip(content: bytes, seconds: float = 0.1) -> Callable[[socket.socket], None]:
    def answer(client: socket.socket) -> None:
        for i in range(len(content)):
            client.sendall(content[i : i + 1])
            time.sleep(seconds)

    return answer


def say(content: bytes) -> Callable[[socket.socket], None]:
    return lambda client: client.sendall(content)


def moved(client: socket.socket) -> None:
    time.sleep(0.25)
    client.sendall(b"HTTP/1.1 302 Found\r\nLocation: /set/next\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        drip(HEAD + b"X: 1\r\n" * 99),
        drip(HEAD),
        drip(HEAD + b"Content-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n" + b"x" * 10, 0.05),
        lambda client: time.sleep(3),
        moved,
        say(HEAD + b"Content-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n" + b"x"),
    ],
    ids=["headers", "status", "body", "nothing", "redirects", "cut"],
)
def test_a_request_ends_in_time(answer):
    with serving(answer) as url:
        transport = HttpTransport(url, TIMEOUT)
        began = time.monotonic()
        with pytest.raises((TransientError, PermanentError)):
            transport.get(str(transport.address("a.tar")), 0, 10, 10)
        assert time.monotonic() - began < TIMEOUT + 1.5


def test_bytes_that_come_in_time_are_taken():
    body = HEAD + b"Content-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n" + b"0123456789"
    with serving(drip(body, 0.001)) as url:
        transport = HttpTransport(url, 5.0)
        assert transport.get(str(transport.address("a.tar")), 0, 10, 10) == b"0123456789"
        assert transport.size(str(transport.address("a.tar"))) == 10


def headers(**fields: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return HEAD + "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n0123456789"


@pytest.mark.parametrize(
    "content",
    [
        headers(Content_Range="bytes 0-9/" + "9" * 5000),
        headers(Content_Range="bytes " + "9" * 5000 + "-9/10"),
        headers(Content_Range="bytes ²-9/10"),
        headers(Content_Range="bytes 0-9/10", Content_Length="9" * 5000),
        headers(Content_Range="bytes 0-9/10", Transfer_Encoding="chunked"),
        headers(Content_Range="bytes 0-9/10", Content_Length="-5"),
        b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n",
        b"HTTP/1.1 503 no\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /set/b\r\nContent-Length: 99999999999\r\n\r\n",
        b"\x00" * 100,
        b"",
    ],
)
def test_an_answer_of_nonsense_is_no_answer(content):
    """Or the ten bytes, where only a length beside them is nonsense; never another error."""
    with serving(say(content)) as url:
        transport = HttpTransport(url, 2.0)
        try:
            assert transport.get(str(transport.address("a.tar")), 0, 10, 10) == b"0123456789"
        except TransportError as error:
            assert str(error) and len(str(error)) < 2000


@pytest.mark.parametrize("code", [200, 404, 403, 503])
def test_a_servers_words_move_no_cursor(code):
    reason = b"\x1b[2J\x1b]0;owned\x07\x9b31m" + b"very " * 5000 + b"long"
    with serving(say(b"HTTP/1.1 %d %s\r\n\r\n" % (code, reason))) as url:
        transport = HttpTransport(url, 2.0)
        with pytest.raises((NotFound, PermanentError, TransientError)) as caught:
            transport.get(str(transport.address("a.tar")), 0, 10, 10)
    shown = str(caught.value)
    assert shown.isprintable() and len(shown) < 1000


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/a@b/c", "http://host/a@b/c"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://user:secret@host/x", "http://host/x"),
        ("http://user:s@cret@host/x", "http://host/x"),
        ("http://user:s/cret@host/x", "http://host/x"),
        ("http://user:s?cret@host/x", "http://host/x"),
        ("http://user:s#c@ret@host/x", "http://host/x"),
        ("s3://key:s@cret@bucket/x", "s3://bucket/x"),
        ("http://host/\x1b[2J", "http://host/\\x1b[2J"),
    ],
)
def test_no_part_of_a_password_is_shown(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize("password", ["s/cret", "s?cret", "s#cret"])
def test_a_password_that_must_be_written_otherwise(password):
    with pytest.raises(ValueError, match="%2F") as caught:
        HttpTransport(f"http://user:{password}@host/x", 1.0)
    assert "cret" not in str(caught.value)
