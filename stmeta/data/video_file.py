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

from stmeta._errors import DataError

# Containers that hold their video themselves; none of them opens a second file.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,h264,hevc,mjpeg,m4v,ivf,mxf,wtv,dv"
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
    return av.open(source, mode="r", metadata_errors="replace", container_options=options)


def video_stream(container: InputContainer) -> av.VideoStream:
    """Return the first video stream, set to decode on the calling thread alone.

    Raises:
        DataError: there is none, or this build of FFmpeg has no decoder for it.
    """
    if not container.streams.video:
        raise DataError("the file has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DataError("no decoder for the video stream")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turn FFmpeg's errors into DataError."""
    try:
        yield
    except FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be decoded: {text}") from error
