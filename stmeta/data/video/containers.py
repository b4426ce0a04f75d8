"""Endings of the names of video files: what `stmeta shard` takes and what a shard may hold."""

from __future__ import annotations

EXTENSIONS = (
    *("mp4", "webm", "avi", "mkv", "mov", "m4v", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "asf"),
    *("flv", "3gp", "3g2", "ogv", "vob", "mxf", "ivf", "mjpeg", "h264", "264", "hevc", "h265"),
    *("265", "dv", "wtv", "gif"),
)
"""In lower case, without a dot. The content decides what a file is; these are only looked at."""
