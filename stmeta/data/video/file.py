"""The one way in which a video is opened for reading, and which of its streams is the video.

What is in a shard may come from anybody. FFmpeg would read much more than films: playlists that
name other files, descriptions of network streams, devices. Everything that reads a video comes
through here, so a file never chooses what else is opened.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext

from stmeta._errors import DataError
from stmeta._util.machine_errors import raise_if_machines
from stmeta.data.video import limits
from stmeta.data.video.reasons import why_not_decoded

ENCRYPTED = "encrypted: it can only be read with a key, and none is used here"

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
# Containers that hold their video themselves; none of them opens a second file.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,h264,hevc,mjpeg,m4v,ivf,mxf,wtv,dv,"
    "mpegvideo"
)


def open_video(video: bytes | str | os.PathLike[str]) -> InputContainer:
    """Open a video for reading; tags in odd encodings do not matter.

    Args:
        video: the file's content, or its path.
    """
    # Content needs no protocol at all, and a path none but the one of files.
    source, protocols = (
        (io.BytesIO(video), "none")
        if isinstance(video, bytes)
        # "file:" keeps names such as "-a.mp4" or "a:b.mp4" from being read as options or protocols.
        else (f"file:{os.fspath(video)}", "file")
    )
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": protocols}
    return av.open(
        source,
        mode="r",
        metadata_errors="replace",
        container_options=options,
        options={"max_pixels": str(limits.picture_pixels())},  # FFmpeg decodes to find out
    )


def video_stream(container: InputContainer) -> av.VideoStream:
    """Return the stream that is the film, set to decode on the calling thread alone.

    Of several it is the one that FFmpeg takes for the best, as its own programs and most readers
    do. A cover picture, which music and downloaded films carry, is none.

    Raises:
        DataError: there is none, this build of FFmpeg has no decoder for it, its pictures are
            larger than `limits.picture_pixels`, or it is encrypted.
    """
    if not container.streams.video:
        raise DataError("the file has no video stream")
    films = films_of(container)
    if not films:
        raise DataError("the file has no video stream but a cover picture")
    best = container.streams.best("video")
    stream = next((film for film in films if best and film.index == best.index), films[0])
    codec = stream.codec_context
    if codec is None:
        raise DataError("no decoder for the video stream")
    if "enc_key_id" in stream.metadata:  # Matroska's mark; others mark packets
        raise DataError(ENCRYPTED)
    limits.check_picture(codec.width, codec.height)
    stream.thread_type = "NONE"
    bound(codec)
    return stream


def films_of(container: InputContainer) -> list[av.VideoStream]:
    """Video streams without covers; those that can be decoded and are meant to be shown first."""
    films = [s for s in container.streams.video if not s.disposition & _PICTURES]
    return sorted(films, key=_rank, reverse=True)


def _rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
    if stream.codec_context is None:
        return False, False, 0
    default = bool(stream.disposition & Disposition.default)
    return True, default, stream.codec_context.width * stream.codec_context.height


def bound(codec: VideoCodecContext) -> None:
    """Let a decoder run on the calling thread, and refuse pictures that grow past the limit."""
    codec.thread_type, codec.thread_count = "NONE", 1
    codec.options = {**codec.options, "max_pixels": str(limits.picture_pixels())}


def is_encrypted(packet: av.Packet) -> bool:
    """Whether a packet is marked as encrypted, as in ISO/IEC 23001-7."""
    return any(part.data_type == "encryption_info" for part in packet.iter_sidedata())


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turn FFmpeg's errors into DataError."""
    try:
        yield
    except FFmpegError as error:
        raise_if_machines(error)
        raise DataError(f"cannot be decoded: {why_not_decoded(error)}") from error
