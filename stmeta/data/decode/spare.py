"""Which packets of a video no other frame needs, from their first bytes.

Such a packet can be left out before the decoder where its own frame is not asked for. Containers do
not tell: MP4 has no flag for it that FFmpeg passes on, so the stream itself is read.
"""

from __future__ import annotations

from collections.abc import Callable

_SLICES = (1, 2, 5)  # of ITU-T H.264, table 7-1: slices that open a picture


def spare_test(codec: str, extradata: bytes | None) -> Callable[[bytes], bool]:
    """A function that tells whether a packet, as the container holds it, is spare.

    H.264 says so in `nal_ref_idc` (ITU-T H.264, 7.4.1). Other codecs, and packets that do not
    read as expected, count as needed.

    Args:
        codec: FFmpeg's name.
        extradata: of the stream; `avcC` gives the bytes of a length (ISO/IEC 14496-15, 5.3.3).
    """
    if codec != "h264" or not extradata:
        return lambda packet: False
    if extradata[0] == 1 and len(extradata) > 4:  # avcC: each unit follows its length
        width = (extradata[4] & 3) + 1
        return lambda packet: _reference(_first_slice_after_lengths(packet, width)) == 0
    return lambda packet: _reference(_first_slice_after_start_codes(packet)) == 0


def _reference(header: int | None) -> int:
    """`nal_ref_idc` of a unit's first byte; 3 where there is none."""
    return 3 if header is None else header >> 5 & 3


def _first_slice_after_lengths(packet: bytes, width: int) -> int | None:
    place = 0
    while place + width < len(packet):
        size = int.from_bytes(packet[place : place + width], "big")
        header = packet[place + width]
        if header & 31 in _SLICES:
            return header
        place += width + size
    return None


def _first_slice_after_start_codes(packet: bytes) -> int | None:
    place = packet.find(b"\0\0\1")
    while 0 <= place < len(packet) - 3:
        header = packet[place + 3]
        if header & 31 in _SLICES:
            return header
        place = packet.find(b"\0\0\1", place + 3)
    return None
