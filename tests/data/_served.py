"""A small set at addresses: in fsspec's memory, from a real nginx, from a server with faults."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from stmeta.data.shards.writer import EncodedSample, write_shards
from stmeta.data.storage.config import StorageConfig

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_CONFIG = """
daemon off; master_process off; pid {here}/nginx.pid; error_log {here}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format short '$status $uri $http_range'; access_log {here}/access.log short;
  client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/f;
  uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {root}; }}
    location /trickle/ {{ alias {root}/; location ~ [.]tar$ {{ limit_rate 100; }} }}
    location /whole/ {{ alias {root}/; max_ranges 0; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    location /faulty/ {{ proxy_pass http://127.0.0.1:{upstream}/; }}
  }}
}}
"""


class Faulty(ThreadingHTTPServer):
    """Serves a folder; each shard first has its faults, in turn: "stall", "cut" or a status."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.lock = root, threading.Lock()
        self.faults: dict[str, list[str]] = {}
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()

    def handle_error(self, *_) -> None:
        """A client that has gone away is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Faulty)
        path = server.root / self.path.lstrip("/")
        with server.lock:
            server.headers.append(dict(self.headers))
            faults = server.faults.get(path.name, [])
            fault = faults.pop(0) if faults else ""
        if fault == "stall":
            server.released.wait(30)
        if fault.isdecimal() or not path.is_file():
            self.send_error(int(fault or 404))
            return
        content = path.read_bytes()
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        last = min(last, len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        part = content[first : last + 1]
        self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)

    def log_message(self, *_) -> None:
        pass


class Site:
    """A running nginx, the set that it serves, and the faulty server behind it."""

    def __init__(self, here: Path, root: Path) -> None:
        self.here, self.faulty = here, Faulty(root)
        threading.Thread(target=self.faulty.serve_forever, args=(0.05,), daemon=True).start()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        text = _CONFIG.format(
            here=here, root=root, port=self.port, upstream=self.faulty.server_address[1]
        )
        (here / "nginx.conf").write_text(text)
        assert NGINX is not None
        self.nginx = subprocess.Popen(
            [NGINX, "-p", here, "-c", here / "nginx.conf", "-e", here / "error.log"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                log = self.here / "error.log"
                assert self.nginx.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def url(self, path: str = "", login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.port}/{path}train"

    def log(self, lines: int = 0) -> list[str]:
        """What was asked for; nginx writes a line after its answer, so wait for so many."""
        deadline = time.monotonic() + 60
        while len(found := (self.here / "access.log").read_text().splitlines()) < lines:
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    def stop(self) -> None:
        self.nginx.kill()
        self.nginx.wait()

    def close(self) -> None:
        self.stop()
        self.faulty.released.set()
        self.faulty.shutdown()
        self.faulty.server_close()


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_video) -> Path:
    root = tmp_path_factory.mktemp("set") / "train"
    samples = [
        EncodedSample(key=f"c{i}", video=make_video(i, frames=12), extension="mp4", label=i % 2)
        for i in range(9)
    ]
    write_shards(samples, root, classes=["a", "b"], shard_mib=0.005)
    assert len(list(root.glob("*.tar"))) > 2
    return root


@pytest.fixture
def memory(split):
    """The set in fsspec's memory; gives its address and its files."""
    files = fsspec.filesystem("memory")
    for path in [*split.iterdir(), split.parent / "classes.json"]:
        files.pipe(f"/set/{path.relative_to(split.parent)}", path.read_bytes())
    yield "memory://set/train", files
    files.rm("/set", recursive=True)


def storage(tmp_path, **options) -> StorageConfig:
    options = {"cache_dir": tmp_path / "cache", "backoff_seconds": 0.001, **options}
    return StorageConfig(**options)


@pytest.fixture
def site(split, tmp_path, monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    here = tmp_path / "nginx"
    here.mkdir()
    site = Site(here, split.parent)
    yield site
    site.close()
