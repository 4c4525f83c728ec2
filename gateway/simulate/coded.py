"""Coded pictures as simulated cameras send them: in which form, in which packets, and what they hash to. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway import nal
from gateway.simulate import jpeg
from gateway.simulate.rtp import JPEG_PAYLOAD_TYPE, PAYLOAD_BYTES_MAX, PAYLOAD_TYPE, Packets, packetize

CODECS = ("h264", "h265", "jpeg")

# A delimiter that allows all slice types, and user data nobody registered, of which the content means nothing.
_DELIMITERS = {"h264": b"\x09\xf0", "h265": b"\x46\x01\x50"}
_USER_DATA = bytes((5, 24)) + bytes.fromhex("2f4f7b3c6ad94c54b3a8c6a1fe0bd2a7") + b"marker??" + b"\x80"
_SEIS = {"h264": b"\x06" + _USER_DATA, "h265": b"\x4e\x01" + _USER_DATA}


def digest(codec: str, value: bytes) -> str:
    """What an access unit hashes to: of the form it is recorded in (Annex B with four-byte start codes).

    Of a JPEG image what travels over RTP counts, since every receiver writes headers of its own.
    """
    hashed = hashlib.blake2b(digest_size=16)
    if codec == "jpeg":
        image = jpeg.Image.of(value)
        hashed.update(f"{image.width} {image.height} {image.kind} {image.restart} ".encode())
        hashed.update(image.tables)
        value = image.scan
    hashed.update(value)
    return hashed.hexdigest()


@dataclass(frozen=True, slots=True)
class Form:
    """How a camera sends its access units; each of these is the habit of some real one. Means nothing for JPEG.

    payload_bytes_max: of RTP payloads. in_band: parameter sets before each key frame, not in the session description
    only. delimiter: an access unit delimiter goes first. marker_on_sei: an SEI message goes before the picture, and its
    packet carries the marker bit, though the access unit goes on. aggregate: small NAL units travel together.
    """

    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    in_band: bool = True
    delimiter: bool = False
    marker_on_sei: bool = False
    aggregate: bool = False


PLAIN = Form()


class Shaped:
    """One coded picture in one form. nals: what is sent; for JPEG the image."""

    __slots__ = ("_codec", "_digest", "nals", "packets")

    def __init__(self, codec: str, nals: tuple[bytes, ...], packets: Packets) -> None:
        self._codec = codec
        self._digest = ""
        self.nals = nals
        self.packets = packets

    @property
    def value(self) -> bytes:
        """As a recorder stores it: Annex B with four-byte start codes, or the image."""
        return self.nals[0] if self._codec == "jpeg" else nal.join(self.nals)

    @property
    def digest(self) -> str:
        """See `digest`; computed once."""
        if not self._digest:
            self._digest = digest(self._codec, self.value)
        return self._digest


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded picture. nals: its NAL units, or the one JPEG image. It may be sent many times, by many cameras."""

    codec: str
    nals: tuple[bytes, ...]
    key: bool
    _forms: dict[Form, Shaped] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, nals: Sequence[bytes], codec: str = "h264") -> Coded:
        kind = nal.CODECS.get(codec)
        return cls(codec, tuple(nals), kind is None or kind.is_key(nals))

    def shaped(self, form: Form = PLAIN) -> Shaped:
        """In this form; made once."""
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = self._shape(form)
        return found

    def _shape(self, form: Form) -> Shaped:
        if self.codec == "jpeg":
            payloads = jpeg.packetize(jpeg.Image.of(self.nals[0]), form.payload_bytes_max)
            return Shaped(self.codec, self.nals, Packets(payloads, payload_type=JPEG_PAYLOAD_TYPE))
        codec = nal.CODECS[self.codec]
        nals = list(self.nals)
        if not form.in_band:
            nals = [each for each in nals if codec.type_of(each) not in codec.parameter_types] or nals
        if form.delimiter and codec.type_of(nals[0]) != codec.delimiter_type:
            nals.insert(0, _DELIMITERS[self.codec])
        sei_at = None
        if form.marker_on_sei:
            sei_at = _before_picture(codec, nals)
            nals.insert(sei_at, _SEIS[self.codec])
        payloads, markers = _payloads(codec, nals, form, sei_at)
        return Shaped(self.codec, tuple(nals), Packets(payloads, markers, PAYLOAD_TYPE))


def _before_picture(codec: nal.Codec, nals: Sequence[bytes]) -> int:
    """Where the first slice is: types 1 to 5 of H.264, 0 to 31 of H.265 (table 7-1 of each)."""
    slices = range(1, 6) if codec is nal.H264 else range(32)
    return next((at for at, each in enumerate(nals) if codec.type_of(each) in slices), len(nals))


def _payloads(
    codec: nal.Codec, nals: Sequence[bytes], form: Form, sei_at: int | None
) -> tuple[list[bytes], frozenset[int]]:
    """The payloads, and which of them carry the marker bit; an SEI message that does ends an aggregation packet."""
    cut = 0 if sei_at is None else sei_at + 1
    parts = [
        packetize(some, form.payload_bytes_max, codec=codec, aggregate=form.aggregate)
        for some in (nals[:cut], nals[cut:])
        if some
    ]
    ends, count = set(), 0
    for part in parts:
        count += len(part)
        ends.add(count - 1)
    return [payload for part in parts for payload in part], frozenset(ends)
