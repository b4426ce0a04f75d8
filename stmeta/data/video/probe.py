"""What a video file holds, read from its headers and packets.

Only one frame is decoded, but of files whose packets leave a doubt about which frames are shown,
and when: those are decoded once (see `decode.evidence`). A file that cannot be read to its declared
end is refused with the reason: an empty file, no video container, no index ("moov"), or data that
stops early.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from stmeta._errors import DataError
from stmeta._util.machine_errors import raise_if_machines
from stmeta.data.video import limits
from stmeta.data.video.colour import check_matrix
from stmeta.data.video.display import Display, display_of
from stmeta.data.video.evidence import Doubt, Evidence
from stmeta.data.video.file import ENCRYPTED, films_of, is_encrypted, open_video, video_stream
from stmeta.data.video.reasons import check_end, why_not_decoded, why_not_read
from stmeta.data.video.timeline import Timeline, in_order, read_timeline

# Containers written by a recorder that may end anywhere: a cut last packet is normal there.
_STREAMED = {"mpegts", "mpeg", "h264", "hevc", "flv"}

_SLOWEST, _FASTEST = 1e-3, 1e6  # frames a second; a time-lapse film of 16 minutes a frame is none

Video: TypeAlias = bytes | str | os.PathLike[str]


class VideoInfo(NamedTuple):
    """Facts about the film in a file.

    Attributes:
        codec: FFmpeg's name of the format, such as "h264" or "vp9".
        width: stored width in pixels, before `rotation` is applied.
        height: stored height in pixels, before `rotation` is applied.
        fps: mean frames per second.
        frames: frames that decoding from the start yields.
        duration_seconds: from the first frame's start to the last frame's end.
        variable_rate: whether `fps` gives the times of frames no better than to a quarter of a
            frame, or the container's tick.
        keyframes: positions of the key frames in display order, ascending.
        rotation: clockwise degrees, one of 0, 90, 180, 270, that a viewer must turn each frame by.
        container: FFmpeg's short format name, such as "mp4", "matroska" or "avi".
        breaks: how often the file's times go back, or leap where streams are joined; the times of
            frames here and in the loader do not (see `timeline.Clock`).
        mirror: whether a viewer must mirror each frame left to right, once it is turned.
        aspect: width of a stored pixel over its height.
        films: video streams of the file, covers left out; one of them is read.
    """

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    variable_rate: bool
    keyframes: tuple[int, ...]
    rotation: int
    container: str
    breaks: int = 0
    mirror: bool = False
    aspect: float = 1.0
    films: int = 1

    @property
    def display(self) -> Display:
        """How a viewer shows it."""
        return Display(self.rotation, self.mirror, self.aspect)

    @property
    def remark(self) -> str:
        """What is worth knowing about a video that is good all the same; "" = nothing."""
        found = []
        if self.breaks:
            found.append(
                f"its times go back or leap {self.breaks} times; frames there follow each other at "
                "the usual distance"
            )
        if self.films > 1:
            found.append(f"it has {self.films} video streams; the one that FFmpeg prefers is read")
        return "; ".join(found)


def probe(video: Video) -> VideoInfo:
    """Describe a video without decoding more than one frame.

    Args:
        video: the file's content, or its path.

    Raises:
        DataError: the video is empty, truncated or not a video; the message is the reason alone,
            so that the caller can put the file's name before it.
        ValueError: a limit in the environment is no number; see `limits`.
    """
    if not isinstance(video, bytes):
        path = Path(video)
        if not path.is_file():
            raise DataError("the file is missing")
        size = path.stat().st_size
    else:
        size = len(video)
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    check_end(video)
    limits.picture_pixels()  # a setting that is wrong is not the video's fault
    try:
        with open_video(video) as container:
            return _describe(video, container, size)
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise_if_machines(error, video)
        raise DataError(why_not_read(error, video)) from error


def _describe(video: Video, container: InputContainer, size: int) -> VideoInfo:
    stream = video_stream(container)
    codec = stream.codec_context
    name = container.format.name.split(",")[0].replace("mov", "mp4")
    if name == "mp4" and any(e.pos + e.size > size for e in stream.index_entries):
        kept = sum(e.pos + e.size <= size for e in stream.index_entries)
        total = len(stream.index_entries)
        raise DataError(f"truncated: the data ends after {kept} of {total} frames")
    first, packets, evidence = _scan(container, stream)
    if not packets:
        raise DataError("the video stream has no frames")
    # AVI counts the frames that a recorder dropped too, and so do its times.
    reached = max(len(packets), (packets[-1].dts or 0) + 1)
    if name == "avi" and reached < 0.95 * stream.frames:
        raise DataError(f"truncated: the data ends after {reached} of {stream.frames} frames")
    if packets[-1].is_corrupt and name not in _STREAMED:
        raise DataError(f"truncated: the data ends inside frame {len(packets)}")
    certain = evidence.doubt() == Doubt()
    timeline = _packets_shown(evidence) if certain else _frames_shown(video, len(packets))
    first = first or _first_frame(video)
    check_matrix(first)
    shows = display_of(first, stream.sample_aspect_ratio)
    if codec.width < 1 or codec.height < 1:
        raise DataError(f"the picture size {codec.width}×{codec.height} is not valid")
    tick = float(stream.time_base or 1)
    seconds = float(timeline.ticks[-1] + timeline.length) * tick
    if seconds <= 0:  # one frame, or all at one time, of no length
        seconds = len(timeline.ticks) / float(stream.average_rate or stream.guessed_rate or 25)
    fps, variable = _rate(stream, timeline.ticks, tick, seconds)
    if not _SLOWEST <= fps <= _FASTEST:
        raise DataError(
            f"its times cannot be right: {len(timeline.ticks)} frames in {seconds:g} s; rates from "
            f"{_SLOWEST:g} to {_FASTEST:g} frames a second are read"
        )
    return VideoInfo(
        codec=codec.codec.canonical_name,
        width=codec.width,
        height=codec.height,
        fps=fps,
        frames=len(timeline.ticks),
        duration_seconds=seconds,
        variable_rate=variable,
        keyframes=tuple(np.flatnonzero(timeline.key).tolist()),
        rotation=shows.rotation,
        container=name,
        breaks=timeline.breaks,
        mirror=shows.mirror,
        aspect=shows.aspect,
        films=len(films_of(container)),
    )


def _scan(
    container: InputContainer, stream: av.VideoStream
) -> tuple[av.VideoFrame | None, list[av.Packet], Evidence]:
    """Read every packet, and decode the first key frame if it comes out at once."""
    first, packets, tried, evidence = None, [], 0, Evidence(container, stream)
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if is_encrypted(packet):
            raise DataError(ENCRYPTED)
        # Keyframe, then flush: the frame comes out at once, whatever the reordering delay.
        if first is None and tried < 4 and packet.is_keyframe and not packet.is_discard:
            tried += 1
            decoded = _decoded_alone(stream.codec_context, packet)
            first = decoded[0] if decoded else None
            stream.codec_context.flush_buffers()
        evidence.add(packet, bytes(packet))
        packets.append(packet)
    return first, packets, evidence


def _packets_shown(evidence: Evidence) -> Timeline:
    """The frames, where each is that of a packet."""
    pts = np.array(evidence.pts, np.int64)
    order = np.argsort(pts, kind="stable")
    order = order[np.array(evidence.displayed)[order]]
    if len(order) == 0:
        raise DataError("no frame of the video is shown")
    ticks = pts[order] - pts[order[0]]
    length = evidence.lengths[order[-1]] or round(float(np.median(np.diff(ticks, prepend=0))))
    return Timeline(ticks, pts[order].tolist(), np.array(evidence.key)[order], length, 0)


def _decoded_alone(codec: VideoCodecContext, packet: av.Packet) -> list[av.VideoFrame]:
    try:
        return codec.decode(packet) + codec.decode(None)
    except FFmpegError as error:
        reason = why_not_decoded(error)
        raise DataError(f"the first frame cannot be decoded ({codec.name}): {reason}") from error


def _frames_shown(video: Video, packets: int) -> Timeline:
    """The frames that a decode from the start gives."""
    with open_video(video) as container:  # some containers cannot go back
        timeline, stopped = read_timeline(container, video_stream(container))
    if stopped is not None:
        reason = getattr(stopped, "strerror", None) or str(stopped)
        raise DataError(
            f"decoding stopped after {len(timeline.ticks)} of {packets} frames: {reason}"
        )
    if len(timeline.ticks) == 0:
        raise DataError("no frame can be decoded")
    return timeline


def _first_frame(video: Video) -> av.VideoFrame:
    with open_video(video) as container:
        stream = video_stream(container)
        first = next(in_order(container.demux(stream)), None)
    if first is None:
        raise DataError(f"the first frame cannot be decoded ({stream.codec_context.name})")
    return first


def _rate(
    stream: av.VideoStream, ticks: np.ndarray, tick: float, seconds: float
) -> tuple[float, bool]:
    """Frames per second, and whether they do not give the times of the frames."""
    frames = len(ticks)
    mean = frames / seconds
    rates = [float(stream.average_rate or mean), mean]
    if frames > 1 and ticks[-1] > 0:
        rates.append((frames - 1) / (float(ticks[-1]) * tick))
    # Containers with coarse ticks (1 ms in Matroska) round: 33, 33, 34. Where a tick is a frame, as
    # in AVI, nothing is rounded: what does not fit was dropped.
    rounding = 0.0 if stream.average_rate and stream.average_rate * tick == 1 else 1.5 * tick
    for rate in rates:
        off = np.abs(ticks * tick - np.arange(frames) / rate).max()
        if abs(rate - mean) < 0.01 * mean or rate == rates[-1]:
            if off <= max(rounding, 0.25 / rate):
                return rate, False
    return mean, True
