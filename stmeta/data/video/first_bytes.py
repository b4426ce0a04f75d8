"""What the first bytes of a packet tell: how many frames it shows, and whether decoding can start.

Nothing is decoded. A packet that does not read as its standard says is damaged: it counts as one
frame, as it did before the damage, and decoding does not start there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stmeta.data.video.disposable import after_lengths, length_bytes, nal_units

# ITU-T H.265, table 7-1: pictures at which decoding starts, and what breaks the order at them.
_IRAP, _IDR, _BLA, _END = range(16, 24), (19, 20), (16, 17, 18), (36, 37)
_SLICES = (1, 2, 5)  # ITU-T H.264, table 7-1: slices that open a picture


class PacketFacts(NamedTuple):
    """What a packet shows of itself.

    Attributes:
        frames: frames; 0 = the decoder keeps it to itself.
        random_access: whether a decoder can start here, as far as the packet itself tells.
        closed_gop: whether in addition nothing behind it refers to what was before it.
        reordered: whether it may be shown in another order than packets come.
        ambiguous: whether what is shown here depends on more than this packet.
        disposable: whether no other frame needs it (H.264 alone tells).
    """

    frames: int = 1
    random_access: bool = True
    closed_gop: bool = True
    reordered: bool = False
    ambiguous: bool = False
    disposable: bool = False


_DAMAGED = PacketFacts(random_access=False, closed_gop=False)
_AMBIGUOUS = PacketFacts(random_access=False, closed_gop=False, ambiguous=True)


def packet_parser(codec: str, extradata: bytes | None) -> Callable[[bytes], PacketFacts]:
    """A function that looks into the packets of a stream, as the container holds them.

    Args:
        codec: FFmpeg's name.
        extradata: of the stream; tells how the units of H.264 and HEVC are divided.
    """
    if codec == "h264":
        width = length_bytes(extradata, 4)
        if width:
            return lambda packet: _h264_after_lengths(packet, width)
        units = nal_units(extradata, 4, 1)
        return lambda packet: _h264(units(packet))
    if codec == "hevc":
        units = nal_units(extradata, 21, 2)
        return lambda packet: _hevc(units(packet))
    return {"vp8": _vp8, "vp9": _vp9}.get(codec, lambda packet: PacketFacts())


def _h264(units: Iterator[bytes]) -> PacketFacts:
    """Of the first slice: its unit's type, and the kind of the slice (ITU-T H.264, 7.3.3)."""
    recovers, facts = False, _DAMAGED
    for unit in units:
        kind = unit[0] & 31
        if kind in _SLICES:
            return _slice(unit[0], unit[1] if len(unit) > 1 else 0, recovers)
        if kind == 6:
            recovers |= _recovers(unit)
        facts = (
            _AMBIGUOUS if 6 <= kind <= 15 else _DAMAGED
        )  # messages and headers without a picture
    return facts


def _h264_after_lengths(packet: bytes, width: int) -> PacketFacts:
    """The same, faster for the most usual packets."""
    if len(packet) > width + 1 and packet[width] & 31 in _SLICES:
        return _slice(packet[width], packet[width + 1], False)
    return _h264(after_lengths(packet, width))


@functools.cache
def _slice(header: int, bits: int, recovers: bool) -> PacketFacts:
    """Of a slice's first two bytes.

    first_mb_in_slice is 0, one bit; slice_type comes next: B slices are of types 1 and 6.
    """
    slice_type = _exp_golomb(bits & 127, 7) if bits & 128 else -1
    if slice_type < 0:
        return _DAMAGED._replace(disposable=not header >> 5 & 3)
    closed_gop = header & 31 == 5
    random_access = slice_type % 5 == 2 and (closed_gop or recovers)
    return PacketFacts(
        1, random_access, closed_gop, slice_type % 5 == 1, disposable=not header >> 5 & 3
    )


def _recovers(unit: bytes) -> bool:
    """Whether a message says that decoding can start at this very picture (H.264, D.2.8)."""
    place = 1
    while place + 2 < len(unit):
        kind, size = unit[place], unit[place + 1]
        if kind == 6:
            return bool(unit[place + 2] & 128)  # recovery_frame_cnt is 0
        place += 2 + size
    return False


def _hevc(units: Iterator[bytes]) -> PacketFacts:
    """Of the first picture unit, by its type; what follows an end of sequence starts anew."""
    facts = _DAMAGED
    for unit in units:
        kind = unit[0] >> 1 & 63
        if kind in _END or kind in _BLA:
            return _AMBIGUOUS
        if kind < 32:
            return PacketFacts(1, kind in _IRAP, kind in _IDR, True)
        facts = _AMBIGUOUS if kind < 48 else _DAMAGED
    return facts


def _vp8(packet: bytes) -> PacketFacts:
    """RFC 6386, 9.1: bit 0 = not a key frame, bit 4 = shown."""
    return PacketFacts(packet[0] >> 4 & 1, not packet[0] & 1, not packet[0] & 1)


def _vp9(packet: bytes) -> PacketFacts:
    """VP9 bitstream specification, 6.2 and annex B: a packet may hold several frames."""
    frames = _superframe(packet)
    shown, key = 0, False
    for number, frame in enumerate(frames):
        bits = frame[0] << 8 | (frame[1] if len(frame) > 1 else 0)
        if bits >> 14 != 2:
            return _DAMAGED
        place = 11 if bits >> 12 & 3 != 3 else 10  # profile 3 has one bit more
        if bits >> place & 1:  # shows a frame that is there already
            shown += 1
            continue
        shown += bits >> place - 2 & 1
        key |= number == 0 and not bits >> place - 1 & 1
    return PacketFacts(shown, key, key, ambiguous=shown > 1)


def _superframe(packet: bytes) -> list[bytes]:
    last = packet[-1]
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    size = 2 + count * width
    if last & 0xE0 != 0xC0 or len(packet) < size or packet[-size] != last:
        return [packet]
    frames, place = [], 0
    for number in range(count):
        at = len(packet) - size + 1 + number * width
        length = int.from_bytes(packet[at : at + width], "little")
        if length:
            frames.append(packet[place : place + length])
        place += length
    return frames


def _exp_golomb(bits: int, width: int) -> int:
    """The first number in so many bits (ITU-T H.264, 9.1); -1 = it does not end there."""
    zeros = width - bits.bit_length()
    return -1 if 2 * zeros + 1 > width else (bits >> width - 2 * zeros - 1) - 1
