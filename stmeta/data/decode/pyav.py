"""Decode chosen frames of a video with PyAV (FFmpeg on the CPU).

The packets of a file are listed once (`read_packets`). With the list, a clip costs its own frames
and those they depend on: decoding starts at the key frame before, skips what nothing refers to, and
needs neither the container nor the rest of the file. Everything here may be called from many
threads; FFmpeg runs without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from stmeta._errors import DataError
from stmeta.data.augment.crop import Window, crop_resize
from stmeta.data.decode import yuv
from stmeta.data.decode.packets import PacketList, WholeFile, read_packets, read_times
from stmeta.data.video import limits
from stmeta.data.video.display import AS_STORED, Display
from stmeta.data.video.file import bound, open_video, reasons, video_stream
from stmeta.data.video.timeline import in_order

__all__ = [
    "Frames",
    "PacketList",
    "WholeFile",
    "YuvFrames",
    "decode",
    "decode_yuv",
    "raw_frames",
    "read_packets",
    "read_times",
]

_SKIPPING = {"h264", "hevc", "vp8", "vp9"}  # honour `skip_frame` from one packet to the next


class Frames(NamedTuple):
    """Decoded frames.

    Attributes:
        video: uint8 [F, H, W, 3], RGB, upright, at the size of the source. What the reader gives
            may be a view of cached memory: read only.
        pts_seconds: float64 [F], time after the video's first frame.
    """

    video: np.ndarray
    pts_seconds: np.ndarray

    def crop_resize(self, window: Window, out: np.ndarray) -> None:
        """Write a window of each frame, resized, into uint8 [F, h, w, 3]."""
        crop_resize(self.video, window, out)


class YuvFrames(NamedTuple):
    """The same, not converted.

    Attributes:
        video: F frames at the size of the source.
        pts_seconds: float64 [F].
    """

    video: yuv.YuvVideo
    pts_seconds: np.ndarray

    def crop_resize(self, window: Window, out: np.ndarray) -> None:
        """Write a window of each frame, converted and resized, into uint8 [F, h, w, 3]."""
        self.video.crop_resize(window, out)


def decode(
    video: bytes,
    indices: np.ndarray,
    *,
    packets: PacketList | WholeFile | None = None,
    first_byte: int = 0,
    display: Display = AS_STORED,
    fps: float = 25.0,
) -> Frames:
    """Decode frames by position.

    Args:
        video: the file, or with `packets` the part of it that starts at `first_byte`.
        indices: int [F], ascending, without repeats.
        packets: what `read_packets` returned; None = read the container from its start, and so
            with a `WholeFile`, which knows the times of frames.
        first_byte: position of `video[0]` in the file.
        display: how to turn and mirror each frame.
        fps: gives the times where `packets` is None.

    Raises:
        DataError: a frame is missing or damaged; the message is the reason alone.
    """
    out: np.ndarray | None = None
    with reasons():
        for place, frame in _wanted(video, indices, packets, first_byte):
            if out is None:
                out = np.empty((len(indices), frame.height, frame.width, 3), np.uint8)
            yuv.write_rgb(frame, out[place], int(indices[place]))
    assert out is not None
    out = np.ascontiguousarray(display.upright(out))
    return Frames(out, _seconds(indices, packets, fps))


def decode_yuv(
    video: bytes,
    indices: np.ndarray,
    *,
    packets: PacketList | WholeFile | None = None,
    first_byte: int = 0,
    display: Display = AS_STORED,
    fps: float = 25.0,
    accept: Callable[[yuv.Kind], bool] = yuv.agrees,
) -> YuvFrames | Frames:
    """Decode frames by position, and leave the conversion to their user; see `decode`.

    Args:
        video: see `decode`, as for those that follow.
        indices: all of these frames are held in memory.
        packets: list of packets.
        first_byte: position in the file.
        display: frames to be turned or mirrored are converted here.
        fps: frames a second.
        accept: says which kinds of frames to leave as they are; others are converted here.

    Raises:
        DataError: a frame is missing or damaged; the message is the reason alone.
    """
    if not display.stored:
        return decode(
            video, indices, packets=packets, first_byte=first_byte, display=display, fps=fps
        )
    with reasons():
        found = sorted(_wanted(video, indices, packets, first_byte), key=itemgetter(0))
        frames = [frame for _, frame in found]
        seconds = _seconds(indices, packets, fps)
        planes = yuv.gather(frames, accept)
        if planes is not None:
            return YuvFrames(planes, seconds)
        out = np.empty((len(frames), frames[0].height, frames[0].width, 3), np.uint8)
        for place, frame in found:
            yuv.write_rgb(frame, out[place], int(indices[place]))
    return Frames(out, seconds)


def raw_frames(
    video: bytes, indices: np.ndarray, packets: PacketList | WholeFile | None, first_byte: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in `indices`, frame) as FFmpeg gives them: unchecked, and maybe not all."""
    if not isinstance(packets, PacketList):
        return _from_container(video, indices)
    return _from_packets(video, indices, packets, first_byte)


def _seconds(indices: np.ndarray, packets: PacketList | WholeFile | None, fps: float) -> np.ndarray:
    return indices / fps if packets is None else packets.seconds(indices)


def _wanted(
    video: bytes, indices: np.ndarray, packets: PacketList | WholeFile | None, first_byte: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in `indices`, frame) for each of them, all sound."""
    if packets is not None and len(indices) and int(indices[-1]) >= packets.frames:
        raise DataError(f"frame {int(indices[-1])} is past the end, {packets.frames} frames")
    count = 0
    for place, frame in raw_frames(video, indices, packets, first_byte):
        if count == 0:
            limits.check_clip(len(indices), frame.width, frame.height)
        if frame.is_corrupt:
            raise DataError(f"frame {int(indices[place])} is damaged")
        yield place, frame
        count += 1
    if count < len(indices) or count == 0:
        raise DataError(f"only {count} of the {len(indices)} requested frames could be decoded")


def _from_packets(
    video: bytes, indices: np.ndarray, packets: PacketList, first_byte: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in `indices`, frame) in display order within each run."""
    wanted = packets.pts[packets.display_order[indices]].tolist()
    places = dict(zip(wanted, range(len(wanted)), strict=True))
    codec = av.CodecContext.create(packets.codec, "r")
    assert isinstance(codec, VideoCodecContext)
    bound(codec)
    if packets.extradata:
        codec.extradata = packets.extradata
    if packets.delay:  # headers need not tell, and a decoder that starts anew has seen nothing yet
        codec.reorder_depth = packets.delay
    # What the stream itself says wins over what the container says, as for any decoder.
    codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc = packets.colours
    # Frames that are not asked for and that no other frame needs do not reach the decoder; where
    # packets do not tell, it skips them.
    skipping, skips = packets.codec in _SKIPPING and not packets.disposable.any(), ""
    for part in packets.parts(indices):
        offsets = (packets.offset[part] - first_byte).tolist()
        times = packets.pts[part].tolist()
        for pts, begin, size in zip(times, offsets, packets.size[part].tolist(), strict=True):
            skip = "NONREF" if skipping and pts not in places else "DEFAULT"
            if skip != skips:
                codec.skip_frame = skips = skip
            packet = av.Packet(video[begin : begin + size])
            packet.pts = pts
            for frame in codec.decode(packet):
                if frame.pts in places:
                    yield places[frame.pts], frame
        for frame in codec.decode(None):
            if frame.pts in places:
                yield places[frame.pts], frame
        codec.flush_buffers()


def _from_container(video: bytes, indices: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in `indices`, frame), counting frames from the start of the file."""
    places = dict(zip(indices.tolist(), range(len(indices)), strict=True))
    with open_video(video) as container:
        packets = container.demux(video_stream(container))
        for number, frame in enumerate(in_order(packets)):
            if number in places:
                yield places[number], frame
                if places[number] == len(indices) - 1:
                    return
