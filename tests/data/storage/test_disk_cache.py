"""The disk cache: bounded, shared by processes, never a reason to stop."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

from stmeta._util import locks
from stmeta.data.storage.disk_cache import DiskCache

ROOT = Path(__file__).parents[3]


def test_the_cache_is_bounded_and_keeps_what_was_used(tmp_path):
    cache = DiskCache(tmp_path, 10_000)
    names = [f"{i:02x}" * 32 for i in range(30)]
    for i, name in enumerate(names):
        cache.write(name, bytes([i]) * 1000)
        assert cache.read(names[0], 1000, 0, 2) == b"\0\0"  # used all the time: stays
        time.sleep(0.002)  # times of use must differ
        sizes = [path.stat().st_size for path in tmp_path.glob("??/*")]
        assert sum(sizes) <= 10_000
    assert cache.read(names[29], 1000, 998, 1000) == bytes([29, 29])
    assert cache.read(names[5], 1000, 0, 1) is None and len(sizes) >= 8
    cache.write("ee" * 32, bytes(10_001))
    assert cache.read("ee" * 32, 10_001, 0, 1) is None


def test_a_damaged_block_is_not_used(tmp_path):
    cache, name = DiskCache(tmp_path, 10_000), "ab" * 32
    cache.write(name, b"x" * 100)
    (block,) = [path for path in tmp_path.glob("??/*")]
    block.write_bytes(b"x" * 60)
    assert cache.read(name, 100, 0, 10) is None
    cache.write(name, b"y" * 100)
    assert cache.read(name, 100, 90, 100) == b"y" * 10
    (tmp_path / "used").write_text("garbage")
    cache.write("cd" * 32, b"z" * 100)
    assert (tmp_path / "used").read_text() == "200"


def test_two_processes_share_a_cache(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from stmeta.data.storage.disk_cache import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]), 40_000)\n"
        "found = 0\n"
        "for i in [*range(200)] * 2:\n"
        "    name = f'{i % 50:02x}' * 32\n"
        "    want = bytes([i % 50]) * 1000\n"
        "    with cache.alone(name, 5):\n"
        "        part = cache.read(name, 1000, 0, 1000)\n"
        "        assert part in (None, want)\n"
        "        found += part is not None\n"
        "        if part is None: cache.write(name, want)\n"
        "assert cache.writable\n"
        "print(found)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    largest = 0
    while any(process.poll() is None for process in processes):
        sizes = []
        for path in tmp_path.glob("??/*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        largest = max(largest, len(sizes))
        time.sleep(0.01)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(int(output) > 0 for output in outputs)
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 40_000
    assert largest <= 50  # names, while one of them is looking through the folder
    assert int((tmp_path / "used").read_text()) <= 40_000


def test_a_lock_that_is_not_given_back_stops_nobody(tmp_path):
    first, second = DiskCache(tmp_path, 1000), DiskCache(tmp_path, 1000)
    with first.alone("ab" * 32, 1):
        began = time.monotonic()
        with second.alone("ab" * 32, 0.1):
            assert 0.1 <= time.monotonic() - began < 10
        with second.alone("cd" * 32, 60):
            pass
    with second.alone("ab" * 32, 60):
        pass


def test_where_nothing_can_be_locked(tmp_path, monkeypatch):
    """As on some network file systems: runs go on, and the cache keeps nothing."""

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    with locks.lock_folder(tmp_path) as free, locks.lock_folder(tmp_path) as again:
        assert free and again
    cache = DiskCache(tmp_path / "cache", 1000)
    with cache.alone("ab" * 32, 60):
        cache.write("ab" * 32, b"x" * 10)
    assert cache.writable and cache.read("ab" * 32, 10, 0, 10) is None


def test_a_folder_is_locked_for_others_until_the_end(tmp_path):
    with locks.lock_folder(tmp_path) as mine:
        with locks.lock_folder(tmp_path) as second:
            assert mine and not second
    with locks.lock_folder(tmp_path) as free:
        assert free and not list(tmp_path.iterdir())
