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
from stmeta.data.decode.sample import SampleDecoder
from stmeta.data.storage import StorageError
from stmeta.data.times import Times


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
            sample, place, indices = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        times = Times()
        try:
            video, pts_seconds = decoder.decode(sample, place, indices, times)
            if video.nbytes > len(shared):
                shared.close()
                os.ftruncate(memory, video.nbytes)
                shared = mmap.mmap(memory, 0)
            shared[: video.nbytes] = video.data.cast("B")
            reply = ("frames", times.sums(), video.shape, pts_seconds)
        except StorageError as error:
            reply = ("unreachable", times.sums(), str(error))
        except DataError as error:
            reply = ("damaged", times.sums(), str(error))
        except Exception:
            reply = ("failed", times.sums(), traceback.format_exc())
        pickle.dump(reply, replies)
        replies.flush()
