"""Where the packets of a video lie in its file: listed once, a clip needs only its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stmeta._errors import DataError
from stmeta.data.decode.spare import spare_test
from stmeta.data.video_file import open_video, reasons, video_stream

# Their packets need nothing from the container but its "extradata". Others (MPEG-4 in AVI with its
# per-encoder work-arounds, ...) are decoded through the container, from the start.
_PLAIN_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mjpeg"}


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
        previous, firsts = -2, keys.tolist()
        for number, packet in zip(group.tolist(), wanted.tolist(), strict=True):
            if runs and (number <= previous + 1 or firsts[number] <= runs[-1][1]):
                runs[-1] = (runs[-1][0], max(runs[-1][1], packet))
            else:
                runs.append((firsts[number], packet))
            previous = number
        return runs

    def parts(self, indices: np.ndarray) -> list[np.ndarray]:
        """The packets of each of `runs(indices)`, int64, but for spare ones not asked for."""
        needed = ~self.spare
        needed[self.shown[indices]] = True
        return [
            first + np.flatnonzero(needed[first : last + 1]) for first, last in self.runs(indices)
        ]

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
    with reasons(), open_video(video) as container:
        stream = video_stream(container)
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
