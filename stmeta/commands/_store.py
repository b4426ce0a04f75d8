"""Options of the commands that write shards."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stmeta.data.ingest.encode import EncodeOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How the shards are made."""

    short_side: int | Literal["source"] = 128
    """Larger videos are scaled down to this short side, in pixels."""
    codec: Literal["h264", "hevc", "vp8", "vp9", "av1", "mjpeg"] = "h264"
    """Codec; DALI decodes vp8, vp9 and mjpeg on a CPU, and the others on an NVIDIA GPU."""
    gop: int = 16
    """Frames from one key frame to the next; short groups make random clips cheap."""
    crf: int | None = None
    """Quality on the codec's own scale, lower is better."""
    shard_mib: float = 64
    """Size of a shard."""
    workers: int | None = None
    """Processes; one per core if left out."""
    resume: bool = False
    """Continue an interrupted run; the result is the same as without the interruption."""

    def encode_options(self, fps: float | Literal["source"], stride: int = 1) -> EncodeOptions:
        """The same for the encoder, with the options that are the command's own."""
        from stmeta.data.ingest.encode import EncodeOptions

        return EncodeOptions(
            short_side=None if self.short_side == "source" else self.short_side,
            fps=None if fps == "source" else fps,
            codec=self.codec,
            gop=self.gop,
            crf=self.crf,
            stride=stride,
        )
