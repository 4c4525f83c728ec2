"""NAL units of H.264 and H.265: splitting, joining, and what a recorder must know about them.

The *Annex B* form of an access unit (ITU-T H.264 and H.265, Annex B) is its NAL units, each behind a start code of
three or four bytes. Gateway stores every access unit with four-byte start codes and the NAL units exactly as they came.
Nothing here decodes a picture: types are read from the NAL header, sizes and ids from the parameter sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

START_CODE = b"\x00\x00\x00\x01"
_SHORT_START_CODE = START_CODE[1:]


@dataclass(frozen=True, slots=True)
class Codec:
    """What differs between the codecs that are made of NAL units."""

    name: str
    header_bytes: int
    type_shift: int
    type_mask: int
    key_types: frozenset[int]
    parameter_types: tuple[int, ...]  # in the order they must be sent
    delimiter_type: int

    def type_of(self, nal: bytes) -> int:
        """The type field of a NAL unit's header."""
        return (nal[0] >> self.type_shift) & self.type_mask

    def is_key(self, nals: Iterable[bytes]) -> bool:
        """Whether decoding can start at this access unit: an IDR picture, or for H.265 any IRAP picture."""
        return any(self.type_of(nal) in self.key_types for nal in nals)

    def parameter_sets(self, nals: Iterable[bytes]) -> list[bytes]:
        """Those of ``nals`` that are parameter sets, in their order."""
        return [nal for nal in nals if self.type_of(nal) in self.parameter_types]


# H.264: table 7-1. Type 5 is a slice of an IDR picture, 7 and 8 are SPS and PPS, 9 the access unit delimiter.
H264 = Codec("h264", 1, 0, 0x1F, frozenset({5}), (7, 8), 9)
# H.265: table 7-1. Types 16 to 21 are the IRAP pictures (BLA, IDR, CRA), 32 to 34 VPS, SPS and PPS.
H265 = Codec("h265", 2, 1, 0x3F, frozenset(range(16, 22)), (32, 33, 34), 35)

CODECS = {codec.name: codec for codec in (H264, H265)}


def split(data: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes.

    Bytes before the first start code and zero bytes after a NAL unit are no part of any (B.1.1: leading_zero_8bits and
    trailing_zero_8bits; a NAL unit never ends in zero, 7.4.1).
    """
    nals = []
    start = data.find(_SHORT_START_CODE)
    while start >= 0:
        start += 3
        end = data.find(_SHORT_START_CODE, start)
        nal = (data[start:end] if end >= 0 else data[start:]).rstrip(b"\x00")
        if nal:
            nals.append(nal)
        start = end
    return nals


def join(nals: Iterable[bytes]) -> bytes:
    """An access unit in Annex B, every NAL unit behind a four-byte start code. The inverse of `split`."""
    return b"".join(part for nal in nals for part in (START_CODE, nal))


class ParameterSets:
    """The newest parameter sets of one camera, so that every key frame can be stored with all of them.

    Each is known by its type and id, so a set that is sent again replaces its predecessor and leaves the others alone.
    At most `LIMIT` are kept (H.264 allows 32 SPS and 256 PPS); beyond that the oldest go.
    """

    LIMIT = 304

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._sets: dict[tuple[int, int], bytes] = {}
        self.changes = 0

    def update(self, nals: Iterable[bytes]) -> bool:
        """Take note of the parameter sets among ``nals``; true when one of them is new or differs."""
        changed = False
        for nal in nals:
            kind = self._codec.type_of(nal)
            if kind not in self._codec.parameter_types:
                continue
            key = (kind, parameter_set_id(self._codec, nal))
            if self._sets.get(key) != nal:
                self._sets.pop(key, None)
                self._sets[key] = nal
                changed = True
        while len(self._sets) > self.LIMIT:
            del self._sets[next(iter(self._sets))]
        self.changes += changed
        return changed

    def missing_from(self, nals: Sequence[bytes]) -> list[bytes]:
        """The known sets that an access unit lacks, in sending order: of every type that it carries none of at all."""
        present = {self._codec.type_of(nal) for nal in nals}
        return [
            nal
            for kind in self._codec.parameter_types
            if kind not in present
            for (known, _), nal in self._sets.items()
            if known == kind
        ]

    def complete(self, nals: Sequence[bytes]) -> list[bytes]:
        """``nals`` with the sets it lacks put in front, behind an access unit delimiter if it begins with one."""
        missing = self.missing_from(nals)
        if not missing:
            return list(nals)
        lead = 1 if nals and self._codec.type_of(nals[0]) == self._codec.delimiter_type else 0
        # Sets keep their order (VPS, SPS, PPS) also when the access unit brings only some of them.
        own = [nal for nal in nals[lead:] if self._codec.type_of(nal) in self._codec.parameter_types]
        rest = [nal for nal in nals[lead:] if self._codec.type_of(nal) not in self._codec.parameter_types]
        sets = sorted([*missing, *own], key=lambda nal: self._codec.parameter_types.index(self._codec.type_of(nal)))
        return [*nals[:lead], *sets, *rest]

    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the newest sequence parameter set, or None when there is none that parses."""
        kind = 7 if self._codec is H264 else 33
        newest = [nal for (known, _), nal in self._sets.items() if known == kind]
        return picture_size(self._codec, newest[-1]) if newest else None


def parameter_set_id(codec: Codec, nal: bytes) -> int:
    """The id a parameter set is referred to by; 0 when it is cut short (a broken set must not stop the recording)."""
    kind = codec.type_of(nal)
    try:
        if codec is H264:
            bits = _Bits(nal[1:40])
            if kind == 7:
                bits.skip(24)  # profile, constraints, level
            return bits.ue()
        bits = _Bits(nal[2:200])
        if kind == 32:
            return bits.read(4)
        if kind == 33:
            bits.skip(4)
            layers = bits.read(3)
            bits.skip(1)
            _skip_profile_tier_level(bits, layers)
        return bits.ue()
    except _ShortError:
        return 0


def picture_size(codec: Codec, sps: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels after cropping, from a sequence parameter set; None when it cannot be read."""
    try:
        size = _h264_size(sps) if codec is H264 else _h265_size(sps)
    except _ShortError:
        return None
    return size if 0 < size[0] <= 65536 and 0 < size[1] <= 65536 else None


class _ShortError(Exception):
    """A parameter set ends before what was looked for."""


class _Bits:
    """Reads bits, most significant first, from a NAL unit's payload without its emulation prevention bytes (7.3.1)."""

    def __init__(self, payload: bytes) -> None:
        plain = payload.replace(b"\x00\x00\x03", b"\x00\x00")
        self._value = int.from_bytes(plain, "big")
        self._left = len(plain) * 8

    def read(self, count: int) -> int:
        if count > self._left:
            raise _ShortError
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def skip(self, count: int) -> None:
        self.read(count)

    def ue(self) -> int:
        """Exp-Golomb, unsigned (9.1)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise _ShortError
        return (1 << zeros) - 1 + self.read(zeros)

    def se(self) -> int:
        """Exp-Golomb, signed (9.1.1)."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


# profile_idc values whose SPS says more about chroma and scaling (H.264 7.3.2.1.1).
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def _h264_size(sps: bytes) -> tuple[int, int]:
    bits = _Bits(sps[1:])
    profile = bits.read(8)
    bits.skip(16)
    bits.ue()
    chroma, separate = 1, 0
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        separate = bits.read(1) if chroma == 3 else 0
        bits.ue()
        bits.ue()
        bits.skip(1)
        if bits.read(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.skip(1)
        bits.se()
        bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue()
    bits.skip(1)
    width = (bits.ue() + 1) * 16
    map_units = bits.ue() + 1
    frames_only = bits.read(1)
    if not frames_only:
        bits.skip(1)
    bits.skip(1)
    height = map_units * 16 * (2 - frames_only)
    if bits.read(1):
        plane = 0 if separate else chroma
        step_x = 2 if plane in (1, 2) else 1
        step_y = (2 if plane == 1 else 1) * (2 - frames_only)
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
        width -= (left + right) * step_x
        height -= (top + bottom) * step_y
    return width, height


def _skip_scaling_list(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _h265_size(sps: bytes) -> tuple[int, int]:
    bits = _Bits(sps[2:])
    bits.skip(4)
    layers = bits.read(3)
    bits.skip(1)
    _skip_profile_tier_level(bits, layers)
    bits.ue()
    chroma = bits.ue()
    separate = bits.read(1) if chroma == 3 else 0
    width, height = bits.ue(), bits.ue()
    if bits.read(1):
        plane = 0 if separate else chroma
        step_x, step_y = (2 if plane in (1, 2) else 1), (2 if plane == 1 else 1)
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
        width -= (left + right) * step_x
        height -= (top + bottom) * step_y
    return width, height


def _skip_profile_tier_level(bits: _Bits, layers: int) -> None:
    """profile_tier_level(1, layers) of H.265 7.3.3."""
    bits.skip(96)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.skip(2 * (8 - layers))
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
