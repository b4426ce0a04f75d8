"""Which packets of a video no other frame needs, from their first bytes.

Such a packet can be left out before the decoder where its own frame is not asked for. Containers do
not tell: MP4 has no flag for it that FFmpeg passes on, so the stream itself is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_SLICES = (1, 2, 5)  # of ITU-T H.264, table 7-1: slices that open a picture
_HEAD = 64  # bytes of a unit that are looked at


def disposable_test(codec: str, extradata: bytes | None) -> Callable[[bytes], bool]:
    """A function that tells whether a packet, as the container holds it, is disposable.

    H.264 says so in `nal_ref_idc` (ITU-T H.264, 7.4.1). Other codecs, and packets that do not
    read as expected, count as needed.

    Args:
        codec: FFmpeg's name.
        extradata: of the stream; `avcC` gives the bytes of a length (ISO/IEC 14496-15, 5.3.3).
    """
    if codec != "h264" or not extradata:
        return lambda packet: False
    units = nal_units(extradata, 4, 1)
    return lambda packet: _reference(units(packet)) == 0


def nal_units(
    extradata: bytes | None, place: int, header: int
) -> Callable[[bytes], Iterator[bytes]]:
    """A function that yields the first bytes of each unit of a packet of H.264 or HEVC.

    Args:
        extradata: of the stream; its first byte is 1 where each unit follows its length.
        place: byte of `extradata` that holds the bytes of a length, less 1.
        header: bytes of a unit's header.
    """
    width = length_bytes(extradata, place)
    if width:
        return lambda packet: after_lengths(packet, width)
    return lambda packet: _after_start_codes(packet, header)


def length_bytes(extradata: bytes | None, place: int) -> int:
    """Bytes of the length before each unit; 0 = start codes are between them."""
    if not extradata or extradata[0] != 1 or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


def _reference(units: Iterator[bytes]) -> int:
    """`nal_ref_idc` of the first slice; 3 where there is none."""
    return next((unit[0] >> 5 & 3 for unit in units if unit[0] & 31 in _SLICES), 3)


def after_lengths(packet: bytes, width: int) -> Iterator[bytes]:
    """The first bytes of each unit that follows its length."""
    place = 0
    while place + width < len(packet):
        size = int.from_bytes(packet[place : place + width], "big")
        yield packet[place + width : place + width + _HEAD]
        place += width + size


def _after_start_codes(packet: bytes, header: int) -> Iterator[bytes]:
    place = packet.find(b"\0\0\1")
    while 0 <= place < len(packet) - 2 - header:
        yield packet[place + 3 : place + 3 + _HEAD]
        place = packet.find(b"\0\0\1", place + 3)
