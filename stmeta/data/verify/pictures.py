"""Frames of a sample, to be looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av.error import FFmpegError

from stmeta._errors import DataError
from stmeta.data.verify.inspect import Sample
from stmeta.data.video import limits
from stmeta.data.video.file import open_video, video_stream
from stmeta.data.video.timeline import Clock, in_order


class Picture(NamedTuple):
    """One frame, upright.

    Attributes:
        index: position in the video.
        seconds: time after the first frame.
        image: uint8 [H, W, 3], RGB.
    """

    index: int
    seconds: float
    image: np.ndarray


def pictures(sample: Sample, count: int) -> tuple[list[Picture], str]:
    """Decode evenly spaced frames of a sample, the first and the last among them.

    Args:
        sample: what `find_sample` returned.
        count: how many; a short video gives fewer.

    Returns:
        The frames, and why some are missing ("" = none is).

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"pictures: count must be 1 or more, got {count}")
    info, found, number = sample.info, [], 0
    last = max(info.frames, 1) - 1
    wanted = set(np.linspace(0, last, min(count, last + 1)).round().astype(int).tolist())
    reason = ""
    try:
        with open_video(sample.video) as container:
            limits.check_clip(len(wanted), info.width, info.height)
            stream = video_stream(container)
            clock = Clock(container, stream)
            for frame in in_order(container.demux(stream)):
                seconds = float(clock(frame) * clock.time_base)
                if number in wanted:
                    seconds = seconds if info.variable_rate else number / (info.fps or 25.0)
                    wide = max(1, round(frame.width * info.aspect))
                    image = info.display.upright(frame.to_ndarray(format="rgb24", width=wide))
                    found.append(Picture(number, seconds, image))
                number += 1
    except (FFmpegError, DataError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if len(found) < len(wanted):
        reason = f"decoding stops after {number} frames: {reason or 'the video ends there'}"
    return found, reason
