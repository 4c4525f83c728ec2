"""From access units to the bytes of one client's connection, with the faults its URL asks for. No sockets."""

from __future__ import annotations

import enum
import random
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.clock import NS_PER_S
from gateway.simulate.coded import Coded, Shaped
from gateway.simulate.faults import Faults
from gateway.simulate.feeds import AccessUnit
from gateway.simulate.rtp import CLOCK_HZ, RtpSender

# No interleaved frame, no reply, no request: whoever reads it has lost the thread.
GARBAGE = b"\x00\xff\x7f these are no bytes of the Real Time Streaming Protocol \xff\x00" * 4
SERVER_REQUEST = "OPTIONS * RTSP/1.0\r\nCSeq: {number}\r\n\r\n"

_AUDIO_PAYLOAD_TYPE = 0  # PCMU, 8 kHz (RFC 3551)
_AUDIO_SILENCE = b"\xff" * 160  # 20 ms
_AUDIO_TICKS = 1800  # the same in video ticks
_AUDIO_HEADER = struct.Struct(">BBHBBHII")


class Then(enum.Enum):
    """What happens to the connection after the bytes."""

    GO_ON = enum.auto()
    CLOSE = enum.auto()
    FREEZE = enum.auto()


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What one access unit came to. shaped: what it was sent as, None if it was held back. timestamp: 90 kHz,
    unwrapped; what is in the packets is its remainder by 2**32. packets: how many it had, lost included.
    """

    data: bytes | bytearray
    shaped: Shaped | None = None
    timestamp: int = 0
    packets: int = 0
    lost: int = 0
    then: Then = Then.GO_ON


class Sending:
    """What one client is sent from PLAY to TEARDOWN.

    alternative: the same picture with other parameter sets, for `switch`. now_s: a clock for sender reports.
    """

    def __init__(
        self,
        faults: Faults,
        channels: tuple[int, int],
        *,
        alternative: Callable[[int], Coded | None] = lambda index: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = faults
        self._form = faults.form
        self._alternative = alternative
        self._now_s = now_s
        self._random = random.Random(faults.seed)
        first = secrets.randbits(16) if faults.seq is None else faults.seq
        self.sender = RtpSender(secrets.randbits(32), first, *channels)
        # Where the stream's time stamps begin; settled by the first access unit where the URL says it.
        self._ticks_offset: int | None = secrets.randbits(32) if faults.rtp is None else None
        self._jump_ticks = 0
        self._sent = 0  # access units, those held back included
        self._keys = 0
        self._burst_left = 0
        self._held = b""  # a packet that its successor overtakes
        self._silent = False
        self._stalled_until_ns: int | None = None
        self._last: tuple[int, int] | None = None  # (time stamp, wall_ns) of the access unit sent last
        self._began_s: float | None = None
        self._reported_s: float | None = None
        self._audio: _Audio | None = None
        self._requests = 0

    def add_audio(self, channels: tuple[int, int]) -> None:
        """Send a silent audio track beside the video."""
        self._audio = _Audio(channels[0])

    @property
    def silent(self) -> bool:
        """Nothing is sent any more, sender reports included."""
        return self._silent

    @property
    def begun(self) -> bool:
        """The first key frame was sent."""
        return self._last is not None

    def first_timestamp(self, ticks_now: int) -> int:
        """What the reply to PLAY says of the RTP clock (RFC 2326, 12.33)."""
        return (ticks_now + self._ticks_offset if self._ticks_offset is not None else self.faults.rtp or 0) & 0xFFFFFFFF

    def unit(self, unit: AccessUnit) -> Dispatch:
        """The bytes that one access unit comes to."""
        number, self._sent = self._sent, self._sent + 1
        before, then = self._before(number, unit)
        if self._held_back(unit) or then is not Then.GO_ON:
            return Dispatch(before, then=then)
        shaped = self._coded(unit).shaped(self._form)
        timestamp = unit.ticks + self._offset(number, unit)
        data: bytes | bytearray = self.sender.send(shaped.packets, timestamp)
        lost = 0
        if self.faults.alters_packets:
            data, lost = self._astray(data, shaped)
        self._last = (timestamp, unit.wall_ns)
        report = self.report(self._now_s())
        if before or report or self._audio is not None:
            audio = self._audio.until(unit.ticks) if self._audio is not None else b""
            # The report goes after its access unit: its counters include it.
            data = b"".join((before, data, report, audio))
        return Dispatch(data, shaped, timestamp, len(shaped.packets), lost)

    def report(self, now_s: float) -> bytes:
        """A sender report if one is due, else nothing."""
        faults = self.faults
        if self._last is None or self._silent or self._stalled_until_ns is not None or not faults.report:
            return b""
        if self._began_s is None:
            self._began_s = now_s
        if self._reported_s is None:
            due = now_s - self._began_s >= faults.first_report
        else:
            due = now_s - self._reported_s >= faults.report
        if not due:
            return b""
        self._reported_s = now_s
        timestamp, wall_ns = self._last
        return self.sender.sender_report(timestamp, wall_ns + int(faults.clock * NS_PER_S))

    def _before(self, number: int, unit: AccessUnit) -> tuple[bytes, Then]:
        """Faults that come before the access unit of this number."""
        faults = self.faults
        data = b""
        if number == faults.close:
            return data, Then.CLOSE
        if number == faults.freeze:
            self._silent = True
            return data, Then.FREEZE
        if number == faults.stall:
            self._stalled_until_ns = unit.wall_ns + int(faults.stall_s * NS_PER_S)
        if number == faults.bye:
            data += self.sender.goodbye()
            self._silent = True
        if number == faults.garbage:
            data += GARBAGE
        if faults.text is not None and number and number % faults.text == 0:
            self._requests += 1
            data += SERVER_REQUEST.format(number=self._requests).encode()
        if number == faults.ssrc:
            old = self.sender
            self.sender = RtpSender(~old.ssrc & 0xFFFFFFFF, old.sequence + 1000, old.rtp_channel, old.rtcp_channel)
            self._ticks_offset = secrets.randbits(32)
            self._reported_s = None
        return data, Then.GO_ON

    def _held_back(self, unit: AccessUnit) -> bool:
        if self._silent:
            return True
        if self._stalled_until_ns is None:
            return False
        if not self.faults.stall_s or unit.wall_ns < self._stalled_until_ns:
            return True
        self._stalled_until_ns = None
        return False

    def _coded(self, unit: AccessUnit) -> Coded:
        """The picture, or the one with other parameter sets when it is their turn."""
        every = self.faults.switch
        if every is None:
            return unit.coded
        self._keys += unit.key
        if (self._keys - 1) // every % 2 == 0:
            return unit.coded
        return self._alternative(unit.index) or unit.coded

    def _offset(self, number: int, unit: AccessUnit) -> int:
        if self._ticks_offset is None:
            self._ticks_offset = (self.faults.rtp or 0) - unit.ticks
        if self.faults.jump and number == self.faults.jump_at:
            self._jump_ticks = round(self.faults.jump * CLOCK_HZ)
        return self._ticks_offset + self._jump_ticks

    def _astray(self, data: bytes | bytearray, shaped: Shaped) -> tuple[bytes, int]:
        """Lose, double and swap packets; returns what is left and how many were lost."""
        faults, chance = self.faults, self._random.random
        kept: list[bytes | bytearray] = []
        lost = 0
        for at, length, _ in shaped.packets.places:
            packet = data[at : at + 4 + length]
            if self._loses():
                lost += 1
                continue
            if faults.reorder and not self._held and chance() * 100 < faults.reorder:
                self._held = bytes(packet)
                continue
            kept.append(packet)
            if faults.duplicate and chance() * 100 < faults.duplicate:
                kept.append(packet)
            kept.append(self._held)
            self._held = b""
        return b"".join(kept), lost

    def _loses(self) -> bool:
        if self._burst_left:
            self._burst_left -= 1
            return True
        if self.faults.loss and self._random.random() * 100 < self.faults.loss / self.faults.burst:
            self._burst_left = self.faults.burst - 1
            return True
        return False


class _Audio:
    """A silent track, as far as the video has come."""

    def __init__(self, rtp_channel: int) -> None:
        self._channel = rtp_channel
        self._ssrc = secrets.randbits(32)
        self._packets = 0
        self._began: int | None = None

    def until(self, ticks: int) -> bytes:
        """All packets up to a time in video ticks, ten seconds at most."""
        if self._began is None:
            self._began = ticks
        due = min((ticks - self._began) // _AUDIO_TICKS, self._packets + 500)
        parts = []
        while self._packets < due:
            length = 12 + len(_AUDIO_SILENCE)
            stamp = self._packets * len(_AUDIO_SILENCE) & 0xFFFFFFFF
            sequence = self._packets & 0xFFFF
            parts.append(
                _AUDIO_HEADER.pack(0x24, self._channel, length, 0x80, _AUDIO_PAYLOAD_TYPE, sequence, stamp, self._ssrc)
            )
            parts.append(_AUDIO_SILENCE)
            self._packets += 1
        return b"".join(parts)
