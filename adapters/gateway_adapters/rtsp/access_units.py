"""From what a demuxer delivers to what is recorded: NAL units in order, key flags, parameter sets, both clocks. No I/O.

libav's parsers give an access unit back only when the first bytes of the next one have arrived. Three things follow,
and are put right here:

* An access unit came when its predecessor was returned, not when it was returned itself; that is its receive time.
  (Were the time of return taken, the last picture before a stall would be late by the whole read time-out.)
* The camera's own time that comes with an access unit (PRFT side data, from RTCP sender reports) is its own, except
  for the first one that has any: there it is its successor's.
* The first access unit of a run has no time stamp. It is held until two more have come, and placed one interval of
  theirs before the second, if their stamps rise; else it is recorded without `pts`. So the first stamp of a run is as
  exact as the camera is regular; all others are the camera's own.

MJPEG goes through no parser: nothing of this applies to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from gateway import nal
from gateway.clock import NS_PER_S

CLOCK_HZ = 90_000
# A time stamp so far behind its predecessor, or so far ahead of the time that passed, means that the camera's clock was
# set: a new run begins. B-frames step back by some frames; on a stalled network time stamps fall behind, never ahead.
BACKWARD_TICKS = 2 * CLOCK_HZ
AHEAD_TICKS = 10 * CLOCK_HZ

# libav's names of the codecs that can be recorded, and those in the records.
CODEC_NAMES = {"h264": "h264", "hevc": "h265", "mjpeg": "jpeg"}


@dataclass(frozen=True, slots=True)
class Packet:
    """What a demuxer returned.

    pts: in units of time_base. camera_ns: the camera's wall clock that came with it, ns since 1970. sender_report: a
    sender report came with it, so that camera_ns is fresh.
    """

    data: bytes
    key: bool
    pts: int | None
    time_base: Fraction
    camera_ns: int | None
    sender_report: bool
    returned_ns: int


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """What is recorded.

    value: Annex B with four-byte start codes, or a JPEG image. ticks: 90 kHz, unwrapped, None if unknown. received_ns:
    when its first bytes came, ns since 1970. source_time_ns: the camera's own clock, None before its first sender
    report. run_begins: its time stamp has no relation to its predecessor's.
    """

    value: bytes
    key: bool
    ticks: int | None
    received_ns: int
    source_time_ns: int | None = None
    run_begins: bool = False


class Assembler:
    """One run of one camera, from connect to disconnect."""

    def __init__(self, codec: str, extradata: bytes = b"") -> None:
        """codec: "h264", "h265" or "jpeg". extradata: parameter sets from the SDP, in Annex B."""
        self.codec = codec
        self._codec = nal.CODECS.get(codec)
        self._sets = nal.ParameterSets(self._codec) if self._codec else None
        if self._sets:
            self._sets.update(nal.split(extradata))
            self._sets.changes = 0
        self._seen_key = False
        self._held: list[AccessUnit] = []
        self._began = False
        self._arrived_ns: int | None = None
        self._had_camera_ns = False
        self._clock: tuple[int, int] | None = None  # (ticks, ns): one instant on both of the camera's clocks
        self._clock_trusted = True  # false from a jump of the time stamps to the next sender report
        self._last: tuple[int, int] | None = None  # (ticks, received_ns) of the last access unit that had both
        self.skipped_before_key = 0
        self.without_pts = 0
        self.clock_jumps = 0

    @property
    def parameter_changes(self) -> int:
        """How often a parameter set came in-band that differs from the one before."""
        return self._sets.changes if self._sets else 0

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, from the newest parameter sets; None for JPEG and while unknown."""
        return self._sets.size() if self._sets else None

    def add(self, packet: Packet) -> Iterator[AccessUnit]:
        """Take one packet; gives what can be recorded now, mostly one access unit."""
        value, key = self._content(packet)
        received_ns, camera_ns = self._times(packet)
        if not value:
            return
        if not (self._seen_key or key):
            self.skipped_before_key += 1
            return
        ticks = _ticks(packet)
        if camera_ns is not None and ticks is not None and self._clock_trusted:
            self._clock = (ticks, camera_ns)
        if packet.sender_report:
            self._clock_trusted = True
        unit = AccessUnit(value, key, ticks, received_ns)
        self._seen_key = True
        if self._began:
            yield self._place(unit)
            return
        self._held.append(unit)
        if self._held[0].ticks is not None or len(self._held) == 3:
            yield from self.end()

    def end(self) -> Iterator[AccessUnit]:
        """What is still held, when no more packets will come."""
        held, self._held = self._held, []
        if held and held[0].ticks is None and len(held) > 1:
            held[0] = _placed_before(held)
        for unit in held:
            yield self._place(unit)

    def _content(self, packet: Packet) -> tuple[bytes, bool]:
        """(what is stored, key frame?)."""
        if self._codec is None or self._sets is None:
            return packet.data, True
        nals = nal.split(packet.data)
        self._sets.update(nals)
        # libav also flags recovery points of streams that have no IDR pictures; such a stream has no other way in.
        key = self._codec.is_key(nals) or packet.key
        return nal.join(self._sets.complete(nals) if key else nals), key

    def _times(self, packet: Packet) -> tuple[int, int | None]:
        """(when it arrived, the camera's time for it), see the module's docstring."""
        if self._codec is None:
            return packet.returned_ns, packet.camera_ns
        received_ns = packet.returned_ns if self._arrived_ns is None else self._arrived_ns
        camera_ns = packet.camera_ns if self._had_camera_ns else None
        self._arrived_ns = packet.returned_ns
        self._had_camera_ns = packet.camera_ns is not None
        return received_ns, camera_ns

    def _place(self, unit: AccessUnit) -> AccessUnit:
        """Add what follows from its predecessors: jumps, the camera's time."""
        begins = not self._began
        self._began = True
        if unit.ticks is None:
            self.without_pts += 1
            return replace(unit, run_begins=begins)
        if self._last is not None:
            step_ticks = unit.ticks - self._last[0]
            passed_ticks = (unit.received_ns - self._last[1]) * CLOCK_HZ // NS_PER_S
            if step_ticks < -BACKWARD_TICKS or step_ticks - passed_ticks > AHEAD_TICKS:
                # Camera time that is derived from the sender report before the jump would be wrong by the jump.
                self.clock_jumps += 1
                self._clock, self._clock_trusted = None, False
                begins = True
        self._last = (unit.ticks, unit.received_ns)
        source_ns = None
        if self._clock is not None:
            source_ns = self._clock[1] + (unit.ticks - self._clock[0]) * NS_PER_S // CLOCK_HZ
        return replace(unit, run_begins=begins, source_time_ns=source_ns)


def _ticks(packet: Packet) -> int | None:
    """90 kHz ticks, exact for every time base that divides them (RTP video always has 1/90000)."""
    if packet.pts is None:
        return None
    return packet.pts * packet.time_base.numerator * CLOCK_HZ // packet.time_base.denominator


def _placed_before(held: list[AccessUnit]) -> AccessUnit:
    """The first access unit with its time stamp and receive time derived from those that follow."""
    first, second = held[0], held[1]
    interval = 0
    if len(held) > 2 and second.ticks is not None and held[2].ticks is not None:
        interval = held[2].ticks - second.ticks
    if interval <= 0 or second.ticks is None:
        return first
    received_ns = min(first.received_ns, second.received_ns - interval * NS_PER_S // CLOCK_HZ)
    return replace(first, ticks=second.ticks - interval, received_ns=received_ns)
