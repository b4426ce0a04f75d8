"""Decode chosen frames of a video with PyAV (FFmpeg on the CPU).

The packets of a file are listed once (`read_packets`). With the list, a clip costs its own frames
and those they depend on: decoding starts at the key frame before, skips what nothing refers to, and
needs neither the container nor the rest of the file. Everything here may be called from many
threads; FFmpeg runs without the GIL.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from stmeta._errors import DataError
from stmeta.data.decode.spare import spare_test

# Their packets need nothing from the container but its "extradata". Others (MPEG-4 in AVI with its
# per-encoder work-arounds, ...) are decoded through the container, from the start.
_PLAIN_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mjpeg"}
_SKIPPING = {"h264", "hevc", "vp8", "vp9"}  # honour `skip_frame` from one packet to the next
_local = threading.local()


class Frames(NamedTuple):
    """Decoded frames.

    Attributes:
        video: uint8 [F, H, W, 3], RGB, upright, at the size of the source.
        pts_seconds: float64 [F], time after the video's first frame.
    """

    video: np.ndarray
    pts_seconds: np.ndarray


@dataclass(frozen=True, slots=True)
class PacketList:
    """Where the packets of a video lie in its file, in file (= decoding) order; P packets."""

    codec: str
    extradata: bytes | None
    time_base: float
    pts: np.ndarray
    """int64 [P], in units of `time_base` seconds."""
    offset: np.ndarray
    """int64 [P], first byte."""
    size: np.ndarray
    """int32 [P], bytes."""
    key: np.ndarray
    """bool [P], whether decoding can start here."""
    spare: np.ndarray
    """bool [P], whether no other frame needs this one, as far as its first bytes tell."""
    shown: np.ndarray
    """int32 [frames], packet of each frame in display order; hidden packets are left out."""

    @property
    def frames(self) -> int:
        """Frames that the video shows."""
        return len(self.shown)

    @property
    def nbytes(self) -> int:
        """Memory that the list takes."""
        arrays = (self.pts, self.offset, self.size, self.key, self.spare, self.shown)
        return sum(array.nbytes for array in arrays) + len(self.extradata or b"") + 256

    def seconds(self, indices: np.ndarray) -> np.ndarray:
        """Times of frames after the first one, float64."""
        pts = self.pts[self.shown]
        return (pts[indices] - pts[0]) * self.time_base

    def runs(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Packets [first, last] to decode, in order, to get frames; ascending, disjoint."""
        keys = np.flatnonzero(self.key)  # hidden ones too: an edit list may hide where a cut starts
        keys = keys[np.argsort(self.pts[keys])]
        wanted = self.shown[indices]
        group = np.searchsorted(self.pts[keys], self.pts[wanted], side="right") - 1
        if len(group) and group.min() < 0:
            raise DataError(f"frame {int(indices[group.argmin()])} has no key frame before it")
        runs: list[tuple[int, int]] = []
        previous = -2
        for number in np.unique(group).tolist():
            first, last = int(keys[number]), int(wanted[group == number].max())
            if runs and (number == previous + 1 or first <= runs[-1][1]):
                runs[-1] = (runs[-1][0], max(runs[-1][1], last))
            else:
                runs.append((first, last))
            previous = number
        return runs

    def byte_range(self, indices: np.ndarray) -> tuple[int, int]:
        """Bytes [begin, end) of the file that hold every packet of `runs(indices)`."""
        parts = [slice(first, last + 1) for first, last in self.runs(indices)]
        begin = min(int(self.offset[part].min()) for part in parts)
        return begin, max(int((self.offset[part] + self.size[part]).max()) for part in parts)


def read_packets(video: bytes) -> PacketList | None:
    """List the packets of a video without decoding it.

    Returns:
        None where packets cannot be decoded outside their container, or bear no times; `decode`
        then goes through the whole container.

    Raises:
        DataError: the bytes are not a video.
    """
    with _reasons(), av.open(io.BytesIO(video), "r", metadata_errors="replace") as container:
        stream = _stream(container)
        codec = stream.codec_context
        if codec.name not in _PLAIN_CODECS or stream.time_base is None:
            return None
        rows = []
        spares = spare_test(codec.name, codec.extradata)
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pos is None or packet.pts is None or next(packet.iter_sidedata(), None):
                return None
            # The position is that of the block; its header is a few bytes long.
            content = bytes(packet)
            offset = video.find(content, packet.pos, packet.pos + packet.size + 64)
            if offset < 0:
                return None
            key, hidden = packet.is_keyframe, packet.is_discard
            rows.append((packet.pts, offset, packet.size, key, spares(content), hidden))
        if not rows:
            raise DataError("the video stream has no frames")
        pts, offset, size, key, spare, hidden = (np.array(x) for x in zip(*rows, strict=True))
        order = np.argsort(pts, kind="stable")
        shown = order[~hidden[order]].astype(np.int32)
        if len(np.unique(pts)) < len(pts) or len(shown) == 0:
            return None
        return PacketList(
            codec.name,
            codec.extradata,
            float(stream.time_base),
            pts,
            offset,
            size.astype(np.int32),
            key,
            spare,
            shown,
        )


def decode(
    video: bytes,
    indices: np.ndarray,
    *,
    packets: PacketList | None = None,
    first_byte: int = 0,
    rotation: int = 0,
    fps: float = 25.0,
) -> Frames:
    """Decode frames by position.

    Args:
        video: the file, or with `packets` the part of it that starts at `first_byte`.
        indices: int [F], ascending, without repeats.
        packets: what `read_packets` returned; None = read the container from its start.
        first_byte: position of `video[0]` in the file.
        rotation: clockwise degrees to turn each frame by: 0, 90, 180 or 270.
        fps: gives the times of frames that bear none.

    Raises:
        DataError: a frame is missing or damaged; the message is the reason alone.
    """
    if packets is not None:
        if len(indices) and int(indices[-1]) >= packets.frames:
            raise DataError(f"frame {int(indices[-1])} is past the end, {packets.frames} frames")
        source = _from_packets(video, indices, packets, first_byte)
        seconds = packets.seconds(indices)
    else:
        source = _from_container(video, indices)
        seconds = indices / fps
    out: np.ndarray | None = None
    count = 0
    with _reasons():
        for place, frame in source:
            if frame.is_corrupt:
                raise DataError(f"frame {int(indices[place])} is damaged")
            if out is None:
                out = np.empty((len(indices), frame.height, frame.width, 3), np.uint8)
            _write_rgb(frame, out[place], int(indices[place]))
            count += 1
    if out is None or count < len(indices):
        raise DataError(f"only {count} of the {len(indices)} frames asked for could be decoded")
    if rotation:
        out = np.ascontiguousarray(np.rot90(out, k=-rotation // 90, axes=(1, 2)))
    return Frames(out, seconds)


def _from_packets(
    video: bytes, indices: np.ndarray, packets: PacketList, first_byte: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in `indices`, frame) in display order within each run."""
    wanted = packets.pts[packets.shown[indices]].tolist()
    places = dict(zip(wanted, range(len(wanted)), strict=True))
    codec = av.CodecContext.create(packets.codec, "r")
    assert isinstance(codec, VideoCodecContext)
    codec.thread_type, codec.thread_count = "NONE", 1
    if packets.extradata:
        codec.extradata = packets.extradata
    skips = ""
    for first, last in packets.runs(indices):
        # Frames that are not asked for and that no other frame needs do not reach the decoder.
        part = np.arange(first, last + 1)
        part = part[~packets.spare[part] | np.isin(packets.pts[part], wanted)]
        offsets = (packets.offset[part] - first_byte).tolist()
        times = packets.pts[part].tolist()
        for pts, begin, size in zip(times, offsets, packets.size[part].tolist(), strict=True):
            skip = "NONREF" if pts not in places and packets.codec in _SKIPPING else "DEFAULT"
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
    with av.open(io.BytesIO(video), "r", metadata_errors="replace") as container:
        for number, frame in enumerate(container.decode(_stream(container))):
            if number in places:
                yield places[number], frame
                if places[number] == len(indices) - 1:
                    return


def _stream(container: InputContainer) -> av.VideoStream:
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise DataError("the file has no video stream that can be decoded")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _write_rgb(frame: av.VideoFrame, out: np.ndarray, index: int) -> None:
    """Convert into out, uint8 [H, W, 3]."""
    height, width, _ = out.shape
    if (frame.height, frame.width) != (height, width):
        raise DataError(
            f"the picture size changes from {width}×{height} to {frame.width}×{frame.height} at "
            f"frame {index}"
        )
    # A new scaler costs more than a frame's decoding, so each thread keeps one per kind of frame.
    kept: dict[tuple[int, int, str], VideoReformatter] = _local.__dict__.setdefault("scalers", {})
    kind = (width, height, frame.format.name)
    if kind not in kept:
        if len(kept) >= 16:
            kept.clear()
        kept[kind] = VideoReformatter()
    plane = kept[kind].reformat(frame, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
    out[...] = rows[:, : width * 3].reshape(height, width, 3)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn FFmpeg's errors into DataError."""
    try:
        yield
    except FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be decoded: {text}") from error
