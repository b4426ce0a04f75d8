"""Videos whose packets are not simply their frames, and what a plain decode shows of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError

from tests.data._videos import moving_bars


def encode(
    codec: str,
    container: str,
    frames: int = 30,
    times: Callable[[int], int] | None = None,
    size: tuple[int, int] = (48, 64),
    pixels: str = "yuv420p",
    **options: str,
) -> bytes:
    """Encode a moving texture; `times` gives the milliseconds of each frame."""
    file = io.BytesIO()
    tick = Fraction(1, 1000)
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if times:
            stream.codec_context.time_base = tick
        for number, picture in enumerate(moving_bars(0, frames, *size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times(number), tick
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()


def x264(container: str, params: str, frames: int = 30) -> bytes:
    return encode("libx264", container, frames, **{"x264-params": f"{params}:threads=1"})


def x265(container: str, params: str, frames: int = 30) -> bytes:
    params += ":log-level=none:pools=none:frame-threads=1"
    return encode("libx265", container, frames, size=(64, 64), **{"x265-params": params})


def copy(
    video: bytes,
    container: str,
    first: int = 0,
    shift: int = 0,
    change: Callable[[bytes], bytes] = lambda content: content,
) -> bytes:
    """Copy packets from the `first` on, with times `shift` frames earlier; -1 = the second key."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container) as target:
        old = source.streams.video[0]
        new = target.add_stream_from_template(old)
        packets = [packet for packet in source.demux(old) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        for packet in packets[keys[1] if first < 0 else first :]:
            made, back = av.Packet(change(bytes(packet))), shift * (packet.duration or 0)
            made.pts, made.dts = packet.pts - back, packet.dts - back
            made.time_base, made.duration = packet.time_base, packet.duration
            made.is_keyframe, made.stream = packet.is_keyframe, new
            target.mux(made)
    return file.getvalue()


def without_reorder_depth(video: bytes) -> bytes:
    """The same H.264 in MP4; its header no longer says how many frames a decoder has to hold."""
    with av.open(io.BytesIO(video)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert extradata is not None
    size = int.from_bytes(extradata[6:8], "big")
    header = extradata[8 : 8 + size]
    bits = "".join(f"{byte:08b}" for byte in header.replace(b"\0\0\3", b"\0\0"))
    end = bits.rindex("1")  # the stop bit
    for place in range(end - 12, 0, -1):  # ITU-T H.264, E.1.1: a flag, a flag, six numbers
        if bits[place : place + 2] == "11" and _numbers(bits[place + 2 : end]) == 6:
            break
    else:
        raise AssertionError("the header does not end with bitstream_restriction")
    kept = bits[:place] + "01"
    changed = int(kept.ljust(-(-len(kept) // 8) * 8, "0"), 2).to_bytes(-(-len(kept) // 8), "big")
    changed = changed.replace(b"\0\0", b"\0\0\3") if b"\0\0\3" in header else changed
    assert video.count(header) == 1
    return video.replace(header, changed.ljust(size, b"\0"))


def _numbers(bits: str) -> int:
    """How many Exp-Golomb numbers make up these bits; -1 = they do not."""
    count = 0
    while bits:
        zeros = len(bits) - len(bits.lstrip("0"))
        if 2 * zeros + 1 > len(bits):
            return -1
        bits, count = bits[2 * zeros + 1 :], count + 1
    return count


def plain(video: bytes) -> list[av.VideoFrame]:
    """Every frame of the first video stream, as FFmpeg shows them one after the other."""
    frames: list[av.VideoFrame] = []
    with av.open(io.BytesIO(video), metadata_errors="replace") as container:
        for packet in container.demux(container.streams.video[0]):
            try:
                frames += packet.decode()
            except InvalidDataError:
                assert not frames, "the stream is damaged"
    return frames


def pictures(frames: Iterable[av.VideoFrame]) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


class Truth(NamedTuple):
    """What FFmpeg shows of a file, one frame after the other.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, upright.
        seconds: float64 [F], after the first one.
        damaged: what ended the decoding.
    """

    frames: np.ndarray
    seconds: np.ndarray
    damaged: str


def truth(video: bytes) -> Truth:
    """Decode all of a video with nothing of the library."""
    found: list[np.ndarray] = []
    pts: list[int | None] = []
    damaged = ""
    with av.open(io.BytesIO(video), metadata_errors="replace") as container:
        stream = container.streams.best("video") or container.streams.video[0]
        stream.thread_type = "NONE"
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        tick, avi = float(stream.time_base or 1), container.format.name == "avi"
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except InvalidDataError:
                    if found:
                        raise
                    continue
                for frame in frames:
                    found.append(upright(frame))
                    pts.append(frame.pts)
        except FFmpegError as error:
            damaged = str(error)
    return Truth(np.stack(found), _seconds(pts, tick, rate, avi), damaged)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The picture as a viewer sees it, uint8 [H, W, 3]: its display matrix applied."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    # A column and a row of the picture become matrix[0, 0] x + matrix[1, 0] y, and likewise.
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), "<i4").reshape(3, 3).tolist()
    if not a and not d:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _seconds(pts: list[int | None], tick: float, rate: float, avi: bool) -> np.ndarray:
    """Times as the file has them; where it has none, or they restart, at its usual distance."""
    steps = np.arange(len(pts)) / rate
    if any(value is None for value in pts):
        return steps
    gaps = np.diff(np.array(pts, np.int64)) * tick
    if avi and (gaps < 0).any():  # the numbers of packets, not times
        return steps
    gaps[gaps < 0] = np.median(gaps[gaps > 0]) if (gaps > 0).any() else 0
    return np.concatenate([[0.0], np.cumsum(gaps)])
