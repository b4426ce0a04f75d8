"""What a decode from the start of a file shows: which frames, and when each of them is.

This is the truth about a video. Where its packets do not prove the same (see `evidence`), it is
decoded once to find out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.format import Flags

_LEAP = 10  # seconds; as ffmpeg's -dts_delta_threshold
# MPEG-4 of these kinds is packed two frames to a packet in AVI, and the times of packets are wrong.
_PACKED = ("mpeg4", "msmpeg4v3", "msmpeg4v2")


class Timeline(NamedTuple):
    """Frames in the order in which they are shown; F frames.

    Attributes:
        ticks: int64 [F], times after the first frame in units of the stream's time base; ascending.
        pts: as the decoder gives them, None = it has none.
        key: bool [F], key frames.
        length: ticks that the last frame stays.
        breaks: how often the times go back, or leap where such streams are joined, which `ticks`
            do not.
    """

    ticks: np.ndarray
    pts: list[int | None]
    key: np.ndarray
    length: int
    breaks: int


class Clock:
    """Gives frames in the order of decoding times that never go back.

    A frame's time is that of its packet, or, where those are wrong more often, that of decoding
    (FFmpeg's "best effort"). Where times go back, or leap by more than 10 s in containers of
    streams that may be joined (MPEG-TS and MPEG-PS), the next frame follows at the usual distance.
    Frames without any times follow each other at the stream's rate, and so do those of AVI that are
    not shown in the order of their packets: AVI knows no time of showing.
    """

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        """Start before the first frame of a stream."""
        codec, name = stream.codec_context, container.format.name
        self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
        rate = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
        self.step = 1 / (rate * self.time_base)
        self.breaks = 0
        packed = codec.codec.canonical_name in _PACKED
        self._counts = name == "avi" and (packed or codec.reorder_depth > 0)
        joined = bool(Flags(container.format.flags) & Flags.ts_discont)
        self._leap = int(_LEAP / self.time_base) if joined else None
        self._gap = max(1, round(self.step))
        self._frames, self._now, self._offset = 0, 0, 0
        self._faults = [0, 0]
        self._last: list[int | None] = [None, None]  # of showing, of decoding

    def __call__(self, frame: av.VideoFrame) -> int:
        """Ticks from the first frame to this one."""
        place, self._frames = self._frames, self._frames + 1
        time = None if self._counts else self._best(frame.pts, frame.dts)
        if self._counts or (time is None and self._last == [None, None]):
            self._now = round(place * self.step)
        elif place == 0 or time is None:
            self._now += self._gap if place else 0
        else:
            ahead = time + self._offset - self._now
            if ahead < 0 or (self._leap is not None and ahead > self._leap):
                self.breaks += 1
                ahead = self._gap
            self._now += ahead
            self._gap = ahead or self._gap
        if time is not None:
            self._offset = self._now - time
        return self._now

    def length(self, frame: av.VideoFrame | None) -> int:
        """Ticks that the last frame stays."""
        return (frame.duration if frame and not self._counts else 0) or self._gap

    def _best(self, pts: int | None, dts: int | None) -> int | None:
        """As `guess_correct_pts` of FFmpeg's libavcodec."""
        for kind, value, other in ((1, dts, pts), (0, pts, dts)):
            last = self._last[kind]
            if value is not None and last is not None:
                self._faults[kind] += value <= last
            value = other if value is None else value
            self._last[kind] = last if value is None else value
        trusted = self._faults[0] <= self._faults[1] or dts is None
        return pts if trusted and pts is not None else dts


def in_order(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Decode a stream from its start; yields every frame that FFmpeg shows.

    A recording may start anywhere: what cannot be decoded before its first key frame is left out,
    and so is what follows that key frame but would be shown before it.

    Args:
        packets: what the container's `demux` yields, its empty packet at the end included.

    Raises:
        FFmpegError: the stream is damaged further on.
    """
    begun, start = False, None
    for packet in packets:
        if packet.is_keyframe and not begun:
            begun, start = True, packet.pts
        try:
            frames = packet.decode()
        except InvalidDataError:
            leads = start is not None and packet.pts is not None and packet.pts < start
            if begun and not leads:
                raise
            continue
        for frame in frames:
            begun = True
            assert isinstance(frame, av.VideoFrame)
            yield frame


def read_timeline(
    container: InputContainer, stream: av.VideoStream
) -> tuple[Timeline, FFmpegError | None]:
    """Decode a stream to its end, keeping no pictures.

    Args:
        container: just opened.
        stream: its video.

    Returns:
        The frames, and what stopped the decoder before the end.
    """
    clock, frame, stopped = Clock(container, stream), None, None
    ticks, pts, key = [], [], []
    try:
        for frame in in_order(container.demux(stream)):
            ticks.append(clock(frame))
            pts.append(frame.pts)
            key.append(bool(frame.key_frame))
    except FFmpegError as error:
        stopped = error
    found = np.array(ticks, np.int64)
    return Timeline(found, pts, np.array(key, bool), clock.length(frame), clock.breaks), stopped
