"""What a decoder process runs: requests from stdin, frames into memory that the caller shares.

It loads neither torch nor DALI, so it starts in a fraction of a second.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import traceback

from stmeta._errors import DataError
from stmeta._util.timers import Timers
from stmeta.data.decode import yuv
from stmeta.data.decode.sample import SampleDecoder
from stmeta.data.storage.folder import StorageError


def main(memory: int) -> None:
    """Answer requests until stdin ends.

    The first object of stdin is the split's root: a folder, or how to read from an address.

    Args:
        memory: descriptor of the shared memory; it grows where a clip is larger.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller stops, and then stdin ends
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    decoder: SampleDecoder | None = None
    shared = mmap.mmap(memory, 0)
    while True:
        try:
            decoder = decoder or SampleDecoder(pickle.load(sys.stdin.buffer))
            sample, place, indices, planes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        timers = Timers()
        try:
            if planes:
                found = decoder.decode_yuv(sample, place, indices, timers, yuv.packable)
            else:
                found = decoder.decode(sample, place, indices, timers)
            video, pts_seconds = found
            if isinstance(video, yuv.YuvVideo):
                name, (parts, layout) = "planes", yuv.pack(video)
            else:
                name, parts, layout = "frames", [video.data.cast("B")], video.shape
            nbytes = sum(part.nbytes for part in parts)
            if nbytes > len(shared):
                shared.close()
                os.ftruncate(memory, nbytes)
                shared = mmap.mmap(memory, 0)
            begin = 0
            for part in parts:
                shared[begin : begin + part.nbytes] = part
                begin += part.nbytes
            reply = (name, timers.sums(), nbytes, layout, pts_seconds)
        except StorageError as error:
            reply = ("unreachable", timers.sums(), str(error))
        except DataError as error:
            reply = ("damaged", timers.sums(), str(error))
        except Exception:
            reply = ("failed", timers.sums(), traceback.format_exc())
        pickle.dump(reply, replies)
        replies.flush()
