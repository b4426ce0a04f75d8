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
from pathlib import Path

from stmeta._errors import DataError
from stmeta.data.decode.sample import SampleDecoder
from stmeta.data.times import Times


def main(root: str, memory: int) -> None:
    """Answer requests until stdin ends.

    Args:
        root: folder of the shards.
        memory: descriptor of the shared memory; it grows where a clip is larger.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller stops, and then stdin ends
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    decoder = SampleDecoder(Path(root))
    shared = mmap.mmap(memory, 0)
    while True:
        try:
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
            reply = ("frames", video.shape, pts_seconds, times["read"], times["decode"])
        except DataError as error:
            reply = ("damaged", str(error))
        except Exception:
            reply = ("failed", traceback.format_exc())
        pickle.dump(reply, replies)
        replies.flush()
