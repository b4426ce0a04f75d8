"""Video files to small, upright ones at a constant frame rate with short groups of pictures.

One thread each: the parallelism of sharding is over videos, one process per core.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError

from stmeta._errors import DataError
from stmeta._util.machine_errors import raise_if_machines
from stmeta.data.ingest.encode import CODECS, EncodeOptions, Encoder
from stmeta.data.video.display import Display
from stmeta.data.video.file import open_video, video_stream
from stmeta.data.video.probe import VideoInfo, probe
from stmeta.data.video.timeline import Clock, in_order

# Their index has the times of showing; in others a key frame may be found, or missed, by any time.
_SEEKABLE = ("mp4", "matroska")
_MAX_REPEATED = 200  # frames made of each; a wrong time stamp would fill the disk with one picture


def transcode(
    video: bytes | str | os.PathLike[str],
    *,
    short_side: int | None = 128,
    fps: float | None = 12.5,
    codec: str = "h264",
    gop: int = 16,
    crf: int | None = None,
    stride: int = 1,
    info: VideoInfo | None = None,
    start_seconds: float = 0.0,
    frames: int | None = None,
) -> bytes:
    """Decode a whole video and encode it small, upright and at a constant frame rate.

    Every tick of the new frame rate takes the frame nearest to it in time. Rotation marks and
    non-square pixels are applied. Sizes are even; small videos are enlarged only where a GPU's
    decoder could not read them otherwise.

    Args:
        video: the file's content, or its path.
        short_side: largest short side in pixels; None = keep the size.
        fps: frames per second; None = the source's own.
        codec: as in `encode_frames`.
        gop: frames from one key frame to the next.
        crf: as in `encode_frames`.
        stride: see `EncodeOptions`.
        info: what `probe` says about the video; None = it is probed.
        start_seconds: what comes before is left out.
        frames: maximum number of frames of the result; None = all.

    Returns:
        The new file's content; `CODECS[codec].extension` is its container.

    Raises:
        DataError: the video is broken, at its start or later on, or it ends before
            `start_seconds`; the message is the reason.
    """
    options = EncodeOptions(
        short_side=short_side, fps=fps, codec=codec, gop=gop, crf=crf, stride=stride
    )
    info = info or probe(video)
    rate = Fraction(fps or info.fps).limit_denominator(1001)
    if frames is None and info.duration_seconds * rate > _MAX_REPEATED * (info.frames + 1000):
        raise DataError(
            f"{info.frames} frames in {info.duration_seconds:g} s would be repeated to fill "
            f"{float(rate):g} a second: its times are wrong, or it needs a lower `fps`"
        )
    with tempfile.NamedTemporaryFile(prefix="stmeta-") as file:
        encoder: Encoder | None = None
        if start_seconds:
            chosen = _at_rate(_frames_from(video, info, start_seconds), rate, keep=False)
        else:
            chosen = _at_rate(_timed_frames(video, info), rate, keep=_keeps(info, fps))
        for frame in itertools.islice(chosen, frames):
            if encoder is None:
                size = _target_size(frame, info.display, options)
                encoder = Encoder(file.name, *size, rate, options)
            encoder.add(_upright(frame, info.display))
        if not start_seconds:
            for _ in chosen:  # to the end: whether a file is damaged is known only there
                pass
        assert encoder is not None, "probe found frames"
        encoder.close()
        return file.read()


def check_decodes(video: bytes | str | os.PathLike[str], info: VideoInfo) -> None:
    """Decode a whole video, keeping nothing.

    Raises:
        DataError: decoding fails on the way, or yields clearly fewer frames than `info` says.
    """
    for _ in _timed_frames(video, info):
        pass


def _timed_frames(
    video: bytes | str | os.PathLike[str], info: VideoInfo
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Every frame in display order with its time in seconds, from 0; raises where data is lost."""
    count = damaged = 0
    step = 1 / Fraction(info.fps).limit_denominator(100_000)
    try:
        with open_video(video) as container:
            stream = video_stream(container)
            clock = Clock(container, stream)
            for frame in in_order(container.demux(stream)):
                damaged += frame.is_corrupt
                time = clock(frame) * clock.time_base if info.variable_rate else count * step
                count += 1
                yield time, frame
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise_if_machines(error, video)
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"decoding stopped after {count} of {info.frames} frames: {reason}"
        ) from error
    if count < min(0.95 * info.frames, info.frames - 1):
        raise DataError(f"truncated: {count} of {info.frames} frames can be decoded")
    if damaged > 0.05 * count:
        raise DataError(f"{damaged} of {count} frames are damaged")


def _frames_from(
    video: bytes | str | os.PathLike[str], info: VideoInfo, start_seconds: float
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Frames from the last key frame before a moment on, with their times counted from it."""
    if start_seconds >= info.duration_seconds:
        raise DataError(
            f"the video ends after {info.duration_seconds:.1f} s, before the clip begins "
            f"({start_seconds:g} s)"
        )
    if info.container not in _SEEKABLE or info.breaks:
        for time, frame in _timed_frames(video, info):
            yield time - Fraction(start_seconds), frame
        return
    try:
        with open_video(video) as container:
            stream = video_stream(container)
            tick, zero = stream.time_base or Fraction(1, 1000), stream.start_time or 0
            container.seek(zero + int(Fraction(start_seconds) / tick), stream=stream)
            damaged = 0
            for number, frame in enumerate(container.decode(stream)):
                damaged += frame.is_corrupt
                if damaged > 1 + 0.05 * number:
                    raise DataError(f"{damaged} of {number + 1} frames are damaged")
                if frame.pts is None:
                    raise DataError("a clip cannot be cut out of it: frames have no time stamps")
                time = (frame.pts - zero) * tick - Fraction(start_seconds)
                if number == 0 and time > 1:
                    raise DataError(
                        "a clip cannot be cut out of it: the first frame that can be decoded comes "
                        f"{float(time):.1f} s after the clip's start"
                    )
                yield time, frame
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise_if_machines(error, video)
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"decoding from {start_seconds:g} s on stopped: {reason}") from error


def _keeps(info: VideoInfo, fps: float | None) -> bool:
    """Whether every source frame is one output frame."""
    return not info.variable_rate and (fps is None or abs(fps - info.fps) < 1e-3 * info.fps)


def _at_rate(
    frames: Iterator[tuple[Fraction, av.VideoFrame]], fps: Fraction, *, keep: bool
) -> Iterator[av.VideoFrame]:
    """For each tick of a constant rate, the frame nearest in time; the earlier one of two."""
    if keep:
        yield from (frame for _, frame in frames)
        return
    tick, held, gap = 0, None, Fraction(0)
    for time, frame in frames:
        if held is not None:
            gap = time - held[0]
            while Fraction(tick) / fps <= held[0] + gap / 2:
                yield held[1]
                tick += 1
        held = (time, frame)
    if held is not None:
        # The last frame stays for as long as the one before it; a one-frame video gives one.
        while tick == 0 or Fraction(tick) / fps < held[0] + gap:
            yield held[1]
            tick += 1


def _target_size(frame: av.VideoFrame, display: Display, options: EncodeOptions) -> tuple[int, int]:
    """Even width and height of the output, upright and with square pixels."""
    turned = display.rotation in (90, 270)
    rows, columns = (frame.width, frame.height) if turned else (frame.height, frame.width)
    height, width = display.square(rows, columns)
    short = min(width, height)
    target = min(options.short_side or short, short)
    target = max(target, CODECS[options.codec].smallest)
    scale = target / short
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _upright(frame: av.VideoFrame, display: Display) -> av.VideoFrame:
    if display.stored:
        return frame
    # Not through RGB, where a film is one already: each way rounds, and to one side.
    pixels = "yuv444p" if frame.format.name.startswith("yuv") else "rgb24"
    picture = frame.to_ndarray(format=pixels, channel_last=True)
    picture = np.ascontiguousarray(display.upright(picture), dtype=np.uint8)
    turned = av.VideoFrame.from_ndarray(picture, format=pixels, channel_last=True)
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


def fits(info: VideoInfo, extension: str, options: EncodeOptions) -> bool:
    """Whether a video is already as `transcode` would store it, so that it can be copied."""
    gaps = np.diff([*info.keyframes, info.frames]) if info.keyframes else [math.inf]
    short = min(info.width, info.height)
    codec = CODECS[options.codec]
    return (
        options.stride == 1  # which frames refer to which is not probed
        and info.codec == options.codec
        and extension == codec.extension
        and not info.variable_rate
        and info.display == Display()
        and codec.smallest <= short <= (options.short_side or short)
        and (options.fps is None or abs(info.fps - options.fps) < 1e-3 * options.fps)
        and bool(max(gaps) <= options.gop)
    )
