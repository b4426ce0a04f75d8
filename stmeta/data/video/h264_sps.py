"""Whether an H.264 stream may code its pictures as fields, from its sequence parameter sets."""

from __future__ import annotations

# Profiles whose sets say more about colour (ITU-T H.264, 7.3.2.1.1).
_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


def frames_only(extradata: bytes | None) -> bool | None:
    """Whether every picture is a whole frame; None = the stream's extradata does not tell."""
    found = [_frame_mbs_only(unit) for unit in _sets(extradata or b"")]
    return all(found) if found and None not in found else None


def _sets(extradata: bytes) -> list[bytes]:
    """The sets in `avcC` (ISO/IEC 14496-15, 5.3.3), or between start codes."""
    if extradata[:1] != b"\1":
        units = extradata.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
        return [unit for unit in units if unit and unit[0] & 31 == 7]
    sets, place = [], 6
    for _ in range(extradata[5] & 31 if len(extradata) > 5 else 0):
        size = int.from_bytes(extradata[place : place + 2], "big")
        sets.append(extradata[place + 2 : place + 2 + size])
        place += 2 + size
    return sets


class _Bits:
    def __init__(self, content: bytes) -> None:
        content = content.replace(b"\0\0\3", b"\0\0")
        self.value, self.left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise EOFError
        return self.value >> self.left & (1 << count) - 1

    def number(self) -> int:
        """Exp-Golomb, unsigned; a signed one has as many bits (H.264, 9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        number = self.number()
        return (number + 1) // 2 if number & 1 else -(number // 2)


def _frame_mbs_only(unit: bytes) -> bool | None:
    try:
        return _read(_Bits(unit[1:]))
    except EOFError:
        return None


def _read(bits: _Bits) -> bool:
    profile = bits.take(24) >> 16
    bits.number()  # seq_parameter_set_id
    if profile in _HIGH:
        chroma = bits.number()
        if chroma == 3:
            bits.take(1)
        bits.number()
        bits.number()
        bits.take(1)
        if bits.take(1):
            for place in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if place < 6 else 64)
    bits.number()  # log2_max_frame_num_minus4
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1)
        bits.number()
        bits.number()
        for _ in range(bits.number()):
            bits.number()
    # max_num_ref_frames, gaps_in_frame_num_value_allowed_flag
    bits.number()
    bits.take(1)
    # size in macroblocks
    bits.number()
    bits.number()
    return bool(bits.take(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = after = 8
    for _ in range(size):
        if after:
            after = (last + bits.signed()) % 256
        last = after or last
