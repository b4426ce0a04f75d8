"""Where the packets of a video lie in its file: listed once, a clip needs only its own.

A list is made only where it gives the frames that a decode from the start gives (see `evidence`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stmeta._errors import DataError
from stmeta.data.video.evidence import Doubt, Evidence, reorder_depth
from stmeta.data.video.file import ENCRYPTED, is_encrypted, open_video, reasons, video_stream
from stmeta.data.video.timeline import read_timeline


@dataclass(frozen=True, slots=True)
class PacketList:
    """Where the packets of a video lie in its file, in file (= decoding) order; P packets."""

    codec: str
    extradata: bytes | None
    time_base: float
    delay: int
    """Frames that the decoder holds back at most, to give them in order."""
    colours: tuple[int, int, int, int]
    """As the container gives them: range, matrix, primaries, transfer; FFmpeg's numbers."""
    single_stream: bool
    """Whether the file has no other video stream."""
    pts: np.ndarray
    """int64 [P], in units of `time_base` seconds."""
    offset: np.ndarray
    """int64 [P], first byte."""
    size: np.ndarray
    """int32 [P], bytes."""
    key: np.ndarray
    """bool [P], whether decoding can start here."""
    disposable: np.ndarray
    """bool [P], whether no other frame needs this one, as far as its first bytes tell."""
    display_order: np.ndarray
    """int32 [frames], packet of each frame in display order; hidden packets are left out."""

    @property
    def frames(self) -> int:
        """Frames that the video shows."""
        return len(self.display_order)

    @property
    def one_frame_per_packet(self) -> bool:
        """Whether each packet of the file shows one frame: who counts packets counts frames."""
        return self.single_stream and len(self.display_order) == len(self.pts)

    @property
    def nbytes(self) -> int:
        """Memory that the list takes."""
        arrays = (self.pts, self.offset, self.size, self.key, self.disposable, self.display_order)
        return sum(array.nbytes for array in arrays) + len(self.extradata or b"") + 256

    def seconds(self, indices: np.ndarray) -> np.ndarray:
        """Times of frames after the first one, float64."""
        pts = self.pts[self.display_order]
        return (pts[indices] - pts[0]) * self.time_base

    def runs(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Packets [first, last] to decode, in order, to get frames; ascending, disjoint."""
        keys = np.flatnonzero(self.key)  # hidden ones too: an edit list may hide where a cut starts
        keys = keys[np.argsort(self.pts[keys])]
        wanted = self.display_order[indices]
        # What is shown before the first key frame, a decoder makes from the start of the file.
        group = np.searchsorted(self.pts[keys], self.pts[wanted], side="right")
        runs: list[tuple[int, int]] = []
        previous, firsts = -2, [0, *keys.tolist()]
        for number, packet in zip(group.tolist(), wanted.tolist(), strict=True):
            if runs and (number <= previous + 1 or firsts[number] <= runs[-1][1]):
                runs[-1] = (runs[-1][0], max(runs[-1][1], packet))
            else:
                runs.append((firsts[number], packet))
            previous = number
        return runs

    def parts(self, indices: np.ndarray) -> list[np.ndarray]:
        """The packets of each of `runs(indices)`, int64, without unwanted disposable ones."""
        needed = ~self.disposable
        needed[self.display_order[indices]] = True
        return [
            first + np.flatnonzero(needed[first : last + 1]) for first, last in self.runs(indices)
        ]

    def byte_range(self, indices: np.ndarray) -> tuple[int, int]:
        """Bytes [begin, end) of the file that hold every packet of `runs(indices)`."""
        parts = [slice(first, last + 1) for first, last in self.runs(indices)]
        begin = min(int(self.offset[part].min()) for part in parts)
        return begin, max(int((self.offset[part] + self.size[part]).max()) for part in parts)


@dataclass(frozen=True, slots=True)
class WholeFile:
    """The frames of a video whose packets are of no use alone: it is decoded from its start."""

    frames: int
    fps: float
    times: np.ndarray | None = None
    """float64 [frames], seconds after the first frame; None = the rate is constant."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return 128 + (0 if self.times is None else self.times.nbytes)

    def seconds(self, indices: np.ndarray) -> np.ndarray:
        """Times of frames after the first one, float64."""
        return indices / self.fps if self.times is None else self.times[indices]


def read_times(video: bytes) -> np.ndarray:
    """Decode a video to learn when its frames are: seconds after the first one, float64 [F].

    Raises:
        DataError: the bytes are not a video, or damaged.
    """
    with reasons(), open_video(video) as container:
        stream = video_stream(container)
        found, stopped = read_timeline(container, stream)
        if stopped is not None:
            raise stopped
        if len(found.ticks) == 0:
            raise DataError("no frame of the video can be decoded")
        return found.ticks * float(stream.time_base or 1)


def read_packets(video: bytes) -> PacketList | None:
    """List the packets of a video; it is decoded only where they leave a doubt.

    Returns:
        None where packets cannot be decoded outside their container, or do not tell which frames
        are shown and when; `decode` then goes through the whole container.

    Raises:
        DataError: the bytes are not a video.
    """
    with reasons(), open_video(video) as container:
        stream = video_stream(container)
        codec, evidence = stream.codec_context, Evidence(container, stream)
        if evidence.unsupported or stream.time_base is None:
            return None
        rows = []
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if is_encrypted(packet):
                raise DataError(ENCRYPTED)
            if packet.pos is None or packet.pts is None or next(packet.iter_sidedata(), None):
                return None
            # The position is that of the block; its header is a few bytes long.
            content = bytes(packet)
            offset = video.find(content, packet.pos, packet.pos + packet.size + 64)
            if offset < 0:
                return None
            disposable = evidence.add(packet, content).disposable
            rows.append((packet.pts, offset, packet.size, disposable))
        if not rows:
            raise DataError("the video stream has no frames")
        pts, offset, size, disposable = (np.array(column) for column in zip(*rows, strict=True))
        display_order = _display_order(video, evidence, pts)
        if display_order is None or len(display_order) == 0:
            return None
        return PacketList(
            codec.name,
            codec.extradata,
            float(stream.time_base),
            max(evidence.delay, reorder_depth(pts)),
            (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc),
            len(container.streams.video) == 1,
            pts,
            offset,
            size.astype(np.int32),
            np.array(evidence.key),
            disposable,
            display_order.astype(np.int32),
        )


def _display_order(video: bytes, evidence: Evidence, pts: np.ndarray) -> np.ndarray | None:
    """The packet of each frame, in order; None = some frames are not of one packet."""
    doubt = evidence.doubt()
    order = np.argsort(pts, kind="stable")
    if doubt == Doubt():
        return order[np.array(evidence.displayed)[order]]
    if not doubt.resolvable:
        return None
    with open_video(video) as container:
        found, stopped = read_timeline(container, video_stream(container))
    if (
        stopped is not None
        or None in found.pts
        or (doubt.one_per_packet and len(found.pts) < len(pts))
    ):
        return None
    times = np.array(found.pts, np.int64)
    same = np.isin(pts[order], times)
    return order[same] if np.array_equal(pts[order][same], times) else None
