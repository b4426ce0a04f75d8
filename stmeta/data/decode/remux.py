"""A file of the packets that some frames of a video need, for decoders that take files."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from stmeta.data.decode.packets import PacketList
from stmeta.data.video.file import open_video, reasons, video_stream

_TICK = Fraction(1, 25)  # the new file's frames follow each other; nobody reads its times


def drop_disposable(
    video: bytes, packets: PacketList, indices: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """Leave out packets that no frame needs; a file without any comes back as it is.

    Args:
        video: the whole file.
        packets: of the file.
        indices: int64 [F], ascending; may repeat.

    Returns:
        A file, and int64 [F], where the frames are in it.

    Raises:
        DataError: the file is damaged; the message is the reason alone.
    """
    if not packets.disposable.any():
        return video, indices
    part = needed(packets, indices)
    first, last = part[0], part[-1]
    early = packets.pts[part] < packets.pts[first]
    # Pictures shown before the first one lack what they refer to; if they have to stay because
    # others refer to them, the decoder had better see the whole file.
    if len(part) == last - first + 1 or early.any():
        return video, indices
    return remux_packets(video, packets, indices, part)


def remux_packets(
    video: bytes, packets: PacketList, indices: np.ndarray, part: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """Copy packets, int64 [N], of which one shows each frame, into an MP4.

    Arguments and result are those of `drop_disposable`.
    """
    order = np.argsort(packets.pts[part])
    display_position = np.empty(len(part), np.int64)  # place of each packet in display order
    display_position[order] = np.arange(len(part))
    # A frame is shown no sooner than it is decoded.
    delay = int((np.arange(len(part)) - display_position).max())
    out = io.BytesIO()
    with reasons(), open_video(video) as source:
        with av.open(out, "w", format="mp4") as target:
            stream = target.add_stream_from_template(video_stream(source))
            for count, (number, place) in enumerate(zip(part, display_position, strict=True)):
                begin = packets.offset[number]
                packet = av.Packet(video[begin : begin + packets.size[number]])
                packet.stream, packet.time_base, packet.duration = stream, _TICK, 1
                packet.dts, packet.pts = count, int(place) + delay
                packet.is_keyframe = bool(packets.key[number])
                target.mux(packet)
    places = dict(zip(part.tolist(), display_position.tolist(), strict=True))
    found = [places[number] for number in packets.display_order[indices].tolist()]
    return out.getvalue(), np.array(found, np.int64)


def needed(packets: PacketList, indices: np.ndarray) -> np.ndarray:
    """From the first to the last packet that frames need, without unwanted disposable ones.

    H.264 counts the pictures that others refer to: a decoder takes one left out for a lost one.
    """
    runs = packets.runs(indices)
    first, last = runs[0][0], runs[-1][1]
    kept = ~packets.disposable[first : last + 1]
    kept[packets.display_order[indices] - first] = True
    return first + np.flatnonzero(kept)
