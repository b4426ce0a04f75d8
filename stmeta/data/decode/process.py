"""Decodes in processes of its own.

FFmpeg decodes without Python's lock, but takes and releases it for every packet: two threads reach
1.6 times the clips of one, and more threads get in each other's way. Processes do not, but hand
over what they decoded. And a file that crashes its decoder costs a process, not the run.
"""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stmeta._errors import DataError
from stmeta._util.machine_errors import StorageError, patiently
from stmeta._util.timers import Timers
from stmeta._util.watchdog import PATIENCE, WATCH
from stmeta.data.decode import pyav, yuv
from stmeta.data.decode.sample import VideoPlace

if TYPE_CHECKING:
    from stmeta.data.storage.folder import Root

_START = "import sys; from stmeta.data.decode.worker import main; main(int(sys.argv[1]))"
_LAST = 10.0  # seconds for a process without work to end
_BYTES = 4 << 20  # shared with a process at first; 16 frames of 340 x 256


class ProcessDecoder:
    """A `FrameSource` of up to `count` processes, each started when it is first needed.

    A video goes to the same process again where that one is free, as it knows the video's packets.
    """

    def __init__(self, root: Root, count: int) -> None:
        """Serve the shards of a split; each process reads them for itself."""
        self.root, self.count = root, count
        self._workers: dict[int, _Worker] = {}
        self._free = set(range(count))
        self._changed = threading.Condition()
        self._closed = False
        self._planes = True

    def decode(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> pyav.Frames:
        """See `FrameSource`."""
        found = self._ask(sample, (sample, place, indices, False), timers)
        assert isinstance(found, pyav.Frames)
        return found

    def decode_yuv(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> pyav.YuvFrames | pyav.Frames:
        """See `FrameSource`."""
        found = self._ask(sample, (sample, place, indices, self._planes), timers)
        if isinstance(found, pyav.Frames) or yuv.agrees(found.video.kind):
            return found
        self._planes = False  # this machine has frames that only FFmpeg converts
        return self.decode(sample, place, indices, timers)

    def _ask(
        self, sample: int, request: tuple[Any, ...], timers: Timers
    ) -> pyav.YuvFrames | pyav.Frames:
        number = self._take(sample % self.count)
        try:
            try:
                return self._once(number, request, timers)
            except _Stopped:  # which is not about the sample
                return self._once(number, request, timers)
        finally:
            with self._changed:
                self._free.add(number)
                self._changed.notify()

    def _once(
        self, number: int, request: tuple[Any, ...], timers: Timers
    ) -> pyav.YuvFrames | pyav.Frames:
        worker = self._workers.get(number)
        if worker is None:
            worker = self._workers[number] = patiently(_Worker, self.root)
        try:
            return worker.decode(request, timers)
        except (EOFError, BrokenPipeError) as error:
            status = self._workers.pop(number).close()
            if worker.process in WATCH.ended:
                raise _Stopped(
                    f"a decoder's process was stopped for {PATIENCE:g} seconds and has been ended; "
                    "let the program's processes run, or use processes=0"
                ) from error
            raise DataError(f"reading it ended the decoder's process (status {status})") from error

    def close(self) -> None:
        """End the processes, once what they do now is done."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: len(self._free) == self.count)
            for worker in self._workers.values():
                worker.close()
            self._workers.clear()

    def _take(self, wanted: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise ValueError("ProcessDecoder: it was closed; make a new one")
            number = wanted if wanted in self._free else next(iter(self._free))
            self._free.remove(number)
            return number


class _Stopped(StorageError):
    """Somebody stopped the process."""


class _Worker:
    def __init__(self, root: Root) -> None:
        # Through the pipe, because everybody can see a command line, and an address may hold a
        # password. It goes with the first request: a process that cannot start is found then.
        self._greeting = pickle.dumps(root)
        self._memory = _shared_memory()
        self._shared = mmap.mmap(self._memory, 0)
        # The package is found where this process found it, also without an installation.
        home = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(self._memory,),
            )
        except BaseException:
            self._shared.close()
            os.close(self._memory)
            raise
        WATCH.add(self._process.pid)

    @property
    def process(self) -> int:
        """Its id."""
        return self._process.pid

    def decode(self, request: tuple[Any, ...], timers: Timers) -> pyav.YuvFrames | pyav.Frames:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(self._greeting)
        self._greeting = b""
        pickle.dump(request, process.stdin)
        process.stdin.flush()
        kind, sums, *reply = pickle.load(process.stdout)
        timers.update(sums)
        if kind == "unreachable":
            raise StorageError(reply[0])
        if kind == "damaged":
            raise DataError(reply[0])
        if kind == "failed":
            raise RuntimeError(f"a decoder process failed\n{reply[0]}")
        nbytes, layout, pts_seconds = reply
        if nbytes > len(self._shared):
            self._shared.close()
            self._shared = mmap.mmap(self._memory, 0)
        content = np.frombuffer(self._shared, np.uint8, nbytes).copy()
        if kind == "frames":
            return pyav.Frames(content.reshape(layout), pts_seconds)
        return pyav.YuvFrames(yuv.unpack(content, *layout), pts_seconds)

    def close(self) -> int:
        """End the process; returns its status."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:  # it has ended already, with a request on its way
            process.stdin = None
        try:
            status = process.wait(_LAST)
        except subprocess.TimeoutExpired:  # it is stopped, or does not end
            process.kill()
            status = process.wait()
        process.stdout.close()
        self._shared.close()
        os.close(self._memory)
        return status


def _shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("stmeta")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, _BYTES)
    return memory
