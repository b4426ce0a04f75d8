"""Whether the packets of a video prove which frames it shows, in which order and when.

They do for ordinary H.264, HEVC, VP8, VP9, AV1 and Motion JPEG in MP4, Matroska, WebM, FLV and AVI.
Anything else is decoded once instead (see `timeline`): packets may hold a half or two frames,
or one that is never shown, and containers may know no times, or wrong ones.
"""

from __future__ import annotations

from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer

from stmeta.data.video.first_bytes import PacketFacts, packet_parser
from stmeta.data.video.h264_sps import frames_only

CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mjpeg"}
CONTAINERS = {"mov", "matroska", "avi", "flv"}
_MOST = 16  # frames that a picture of H.264 or HEVC may wait for others
_PROGRESSIVE = (0, 1)  # of AVFieldOrder: unknown, progressive


class Doubt(NamedTuple):
    """Why packets prove nothing.

    Attributes:
        reason: in words; "" = they do.
        resolvable: whether one decode can settle it: if that shows just the frames of these
            packets, they are as good as others.
        one_per_packet: and only if each packet shows one.
    """

    reason: str = ""
    resolvable: bool = False
    one_per_packet: bool = False


class Evidence:
    """Takes the packets of a stream, one by one in the order of the file."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        """Start before the first packet of a stream."""
        codec = stream.codec_context
        self.codec, self.name = codec.name, container.format.name.split(",")[0]
        self.delay = codec.reorder_depth
        whole = frames_only(codec.extradata) if codec.name == "h264" else True
        self._fields = codec.field_order not in _PROGRESSIVE if whole is None else not whole
        self._parse = packet_parser(codec.name, codec.extradata)
        self.pts: list[int | None] = []
        self.key: list[bool] = []
        """Whether decoding can start at a packet: the container and the packet say so."""
        self.displayed: list[bool] = []
        self.lengths: list[int] = []
        self._never_shown: list[bool] = []  # packets of which no decoder shows anything
        self._first, self._reordered, self._ambiguous = PacketFacts(), False, False

    @property
    def unsupported(self) -> bool:
        """Whether no packets of such a stream prove anything."""
        return self.codec not in CODECS or self.name not in CONTAINERS

    def add(self, packet: av.Packet, content: bytes) -> PacketFacts:
        """Take the next packet, and what is in it; returns what that tells."""
        facts = self._parse(content)
        if not self.pts:
            self._first = facts._replace(random_access=facts.random_access and packet.is_keyframe)
        self.pts.append(packet.pts)
        self.key.append(facts.random_access and packet.is_keyframe)
        self.displayed.append(facts.frames > 0 and not packet.is_discard)
        self.lengths.append(packet.duration or 0)
        self._never_shown.append(not facts.frames)
        self._reordered |= facts.reordered
        self._ambiguous |= facts.ambiguous
        return facts

    def doubt(self) -> Doubt:
        """Why the packets taken so far prove nothing."""
        if self.unsupported:
            return Doubt(f"{self.codec} in {self.name}")
        if self._ambiguous:
            return Doubt("packets do not hold one frame each")
        times = [pts for pts, kept in zip(self.pts, self._never_shown, strict=True) if not kept]
        if None in self.pts or len(set(times)) < len(times):
            return Doubt("times are missing or repeat")
        depth = reorder_depth(np.array(self.pts, np.int64))
        if depth > _MOST:
            return Doubt("times go back")
        if self._fields:
            return Doubt("pictures may be coded as fields", True, True)
        if not (self._first.random_access and self._first.closed_gop):
            return Doubt("it does not start with a closed group of pictures", True)
        if self.codec not in ("h264", "hevc"):
            return Doubt("times go back" if depth else "")
        if depth > self.delay or (depth == 0 and self._reordered and self._unordered()):
            # AVI numbers its packets, whatever is shown first.
            return Doubt("the times are not those of showing", self.name != "avi")
        return Doubt()

    def _unordered(self) -> bool:
        """Whether frames may be shown in another order though their times ascend."""
        return self.codec == "h264" or self.delay > 0


def reorder_depth(pts: np.ndarray) -> int:
    """How many packets at most precede one that is shown before them; int64 [P]."""
    order = np.argsort(pts, kind="stable")
    # Packets still ahead of a place in the file that are shown before it.
    later = np.maximum.accumulate(order) - np.arange(len(order))
    return int(later.max(initial=0))
