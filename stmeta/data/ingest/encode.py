"""Frames to video files with short groups of pictures, on one thread each."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from stmeta.data.video.colour import is_full_range
from stmeta.data.video.display import AS_STORED, Display

_BT601 = 6  # of AVColorSpace: SMPTE 170M, the same numbers
_AS_BT601 = (2, 5, _BT601)  # what is not marked is taken for it


@dataclasses.dataclass(frozen=True)
class _Codec:
    encoder: str
    extension: str
    options: dict[str, str]
    quality: str = "crf"  # name of the encoder's quality option
    default: int = 23
    # NVDEC refuses smaller pictures (NVIDIA Video Codec SDK, support matrix).
    smallest: int = 48
    pixels: str = "yuv420p"


# No scene-cut key frames: every group of pictures has the same length, so seeks cost the same.
# No mbtree: with it, the same frames give other bytes from call to call (x264's SIMD code).
_X264 = "scenecut=0:mbtree=0:threads=1:lookahead-threads=1"
_X265 = "scenecut=0:pools=none:frame-threads=1:log-level=none"
CODECS = {
    "h264": _Codec("libx264", "mp4", {"preset": "veryfast", "x264-params": _X264}),
    "hevc": _Codec(
        "libx265", "mp4", {"preset": "fast", "x265-params": _X265}, default=26, smallest=144
    ),
    "vp8": _Codec("libvpx", "webm", {"deadline": "good", "cpu-used": "4"}, default=10),
    "vp9": _Codec(
        "libvpx-vp9", "webm", {"deadline": "good", "cpu-used": "4"}, default=31, smallest=128
    ),
    "av1": _Codec(
        "libsvtav1", "mp4", {"preset": "8", "svtav1-params": "lp=1"}, default=35, smallest=128
    ),
    "mjpeg": _Codec("mjpeg", "avi", {}, quality="qscale", default=3, pixels="yuvj420p"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How videos are stored."""

    short_side: int | None = 128
    """Largest short side in pixels; larger videos are scaled down. None = keep the size."""
    fps: float | None = 12.5
    """Frames per second. None = the source's own (its mean, where it varies)."""
    codec: str = "h264"
    """h264, hevc, vp8, vp9, av1 or mjpeg."""
    gop: int = 16
    """Frames from one key frame to the next."""
    crf: int | None = None
    """Quality on the codec's own scale, lower is better; None = the codec's usual value."""
    stride: int = 1
    """H.264: every so many frames one that others refer to, and none between. A clip of this stride
    that starts on one then needs no other frame, and the rest does not reach the decoder."""

    def __post_init__(self) -> None:
        if self.stride < 1 or (
            self.stride > 1 and (self.codec != "h264" or self.gop % self.stride)
        ):
            raise ValueError(
                "encode: stride must be 1, or with h264 a divisor of gop, got stride "
                f"{self.stride} with {self.codec} and gop {self.gop}"
            )
        if self.codec not in CODECS:
            raise ValueError(
                f"encode: codec must be one of {', '.join(CODECS)}, got {self.codec!r}"
            )
        for name in ("short_side", "fps", "gop"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"encode: {name} must be above 0, got {value}")


def encode_frames(
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str = "h264",
    gop: int = 16,
    crf: int | None = None,
    rotation: int = 0,
    mirror: bool = False,
    aspect: float = 1.0,
    stride: int = 1,
) -> bytes:
    """Encode RGB frames as a video file.

    Args:
        frames: uint8 [T, H, W, 3], or an iterable of [H, W, 3]; H and W even.
        fps: frames per second.
        codec: h264, hevc, av1 (MP4), vp8, vp9 (WebM) or mjpeg (AVI).
        gop: frames from one key frame to the next.
        crf: quality on the codec's own scale; None = the codec's usual value.
        rotation: clockwise degrees that a viewer shall turn the frames by (MP4 only).
        mirror: whether a viewer shall then mirror them left to right (MP4 only).
        aspect: width of a pixel over its height.
        stride: see `EncodeOptions`.

    Returns:
        The file's content; MP4s have their index in front.

    Raises:
        ValueError: no frames, or a frame of another shape, type or odd size.
    """
    options = EncodeOptions(codec=codec, gop=gop, crf=crf, stride=stride)
    encoder: Encoder | None = None
    # A real file: an MP4's index goes to the front in a second pass.
    with tempfile.NamedTemporaryFile(prefix="stmeta-") as file:
        for frame in frames:
            _check_frame(frame, encoder)
            if encoder is None:
                height, width = frame.shape[:2]
                display = Display(rotation, mirror, aspect)
                encoder = Encoder(file.name, width, height, Fraction(fps), options, display)
            encoder.add(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        if encoder is None:
            raise ValueError("encode_frames: needs at least one frame, got none")
        encoder.close()
        return file.read()


class Encoder:
    """Writes frames to a file at a constant rate; one scaler serves all frames."""

    def __init__(
        self,
        path: str,
        width: int,
        height: int,
        fps: Fraction,
        options: EncodeOptions,
        display: Display = AS_STORED,
    ) -> None:
        codec = CODECS[options.codec]
        # bitexact: WebM otherwise gets random ids, and the same frames would give other bytes.
        extra = {"fflags": "+bitexact"}
        if codec.extension == "mp4":
            extra["movflags"] = "+faststart"
        if codec.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only; it prints pages otherwise
        self.container = av.open(path, "w", format=codec.extension, options=extra)
        self.pixels, self.scaler, self.count = codec.pixels, VideoReformatter(), 0
        self.name, self.levels = options.codec, ColorRange.MPEG
        rate = fps.limit_denominator(1001)
        settings = codec.options | {"g": str(options.gop)}
        if options.stride > 1:
            # Open groups: a closed one ends on a reference that breaks the rhythm before it.
            settings["x264-params"] += (
                f":bframes={options.stride - 1}:b-adapt=0:b-pyramid=none:open-gop=1"
            )
        crf = codec.default if options.crf is None else options.crf
        if codec.quality == "crf":
            settings["crf"] = str(crf)
        self.stream: Any = self.container.add_stream(codec.encoder, rate=rate, options=settings)
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt = codec.pixels
        self.stream.time_base = self.tick = 1 / rate
        self.stream.thread_type = "NONE"
        context = self.stream.codec_context
        context.thread_count = 1
        if codec.quality == "qscale":
            context.qscale = True
            context.global_quality = crf * 118  # FFmpeg's FF_QP2LAMBDA
        if codec.encoder.startswith("libvpx"):
            # VP8 needs a rate that crf then bounds; VP9 follows crf alone at rate 0.
            context.bit_rate = 4_000_000 if codec.encoder == "libvpx" else 0
        if not display.stored:
            self.stream.set_display_rotation(-display.rotation, hflip=display.mirror)
        if display.aspect != 1:
            context.sample_aspect_ratio = Fraction(display.aspect).limit_denominator(1000)

    def add(self, frame: av.VideoFrame) -> None:
        """Scale and encode the next frame."""
        if self.count == 0:
            self._mark(frame)
        shrinks = frame.width > 2 * self.stream.width
        scaling = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        if int(frame.colorspace) not in _AS_BT601:
            # Another matrix is reached through RGB: pictures get a level or two darker otherwise.
            scaling |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        frame = self.scaler.reformat(
            frame,
            self.stream.width,
            self.stream.height,
            self.pixels,
            interpolation=scaling,
            dst_colorspace=Colorspace.ITU601,  # what decoders take an unmarked small video for
            dst_color_range=self.levels,
            threads=1,
        )
        frame.pts, frame.time_base = self.count, self.tick
        frame.pict_type = PictureType.NONE  # the source's key frames are not ours
        self.count += 1
        opens = self.count == 1 and self.stream.codec_context.name == "libsvtav1"
        before = _real_time() if opens else {}
        packets = self.stream.encode(frame)
        if opens:
            _leave_real_time(before)
        self.container.mux(packets)

    def _mark(self, frame: av.VideoFrame) -> None:
        """Choose the levels of black and white, and write them and the matrix into the file.

        Full-range video stays so, as fewer levels would round every value. VP8 has no mark for it,
        and Motion JPEG knows nothing else.
        """
        full = is_full_range(frame) and self.name != "vp8"
        self.levels = ColorRange.JPEG if full or self.name == "mjpeg" else ColorRange.MPEG
        context = self.stream.codec_context
        context.color_range, context.colorspace = int(self.levels), _BT601

    def close(self) -> None:
        """Flush and write the index."""
        self.container.mux(self.stream.encode(None))
        self.container.close()


def _real_time() -> dict[int, int]:
    """Priority of each thread of this process that the kernel schedules first in, first out."""
    found: dict[int, int] = {}
    if not sys.platform.startswith("linux"):
        return found
    for thread in map(int, os.listdir("/proc/self/task")):
        try:
            if os.sched_getscheduler(thread) == os.SCHED_FIFO:
                found[thread] = os.sched_getparam(thread).sched_priority
        except ProcessLookupError:  # it has ended meanwhile
            continue
    return found


def _leave_real_time(before: dict[int, int]) -> None:
    """Undo what SVT-AV1 does when root opens it.

    It gives this thread and those that it starts the highest real-time priority, and the whole
    machine then waits for them. Threads that had one before get theirs back.
    """
    for thread in _real_time():
        policy = os.SCHED_FIFO if thread in before else os.SCHED_OTHER
        try:
            os.sched_setscheduler(thread, policy, os.sched_param(before.get(thread, 0)))
        except ProcessLookupError:
            continue


def _check_frame(frame: np.ndarray, encoder: Encoder | None) -> None:
    fits = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not fits or frame.shape[2] != 3 or frame.shape[0] % 2 or frame.shape[1] % 2:
        raise ValueError(
            "encode_frames: frames must be uint8 [H, W, 3] with even H and W, got "
            f"{getattr(frame, 'dtype', type(frame))} {getattr(frame, 'shape', '')}; crop or resize"
        )
    if encoder and frame.shape[:2] != (encoder.stream.height, encoder.stream.width):
        raise ValueError(
            f"encode_frames: all frames must be {encoder.stream.height}×{encoder.stream.width} "
            f"like the first, got {frame.shape[0]}×{frame.shape[1]}"
        )
