"""Whether the wall clock can be believed, as far as deleting by age goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from gateway import clock
from gateway.clock import NS_PER_S

# A larger difference between two clocks that should run alike is a jump, not slewing.
JUMP_NS = 3_600 * NS_PER_S
# So long after a jump nothing is deleted by age: who sets a clock by hand may set it twice.
PAUSE_AFTER_JUMP_NS = 3_600 * NS_PER_S
# The kernel is asked so often.
ASK_INTERVAL_NS = 10 * NS_PER_S


class Clocks(NamedTuple):
    """The clocks that are read; tests give their own."""

    realtime_ns: Callable[[], int] = clock.realtime_ns
    boottime_ns: Callable[[], int] = clock.boottime_ns
    is_synchronised: Callable[[], bool | None] = clock.is_synchronised


class ClockWatch:
    """Sees jumps of the wall clock against the clock that counts since boot, and whether the kernel trusts it."""

    def __init__(self, mode: Literal["ntp", "trusted"], clocks: Clocks | None = None) -> None:
        self.mode = mode
        self.clocks = clocks or Clocks()
        self.jumps = 0
        self._offset_ns = self._difference_ns()
        self._jumped_ns: int | None = None  # boot time
        self._asked_ns: int | None = None
        self._synchronised: bool | None = None

    @property
    def now_ms(self) -> int:
        """The wall clock."""
        return self.clocks.realtime_ns() // clock.NS_PER_MS

    def look(self) -> int:
        """By how much (ns) the wall clock jumped since the last look; 0 if it did not."""
        offset_ns = self._difference_ns()
        moved_ns, self._offset_ns = offset_ns - self._offset_ns, offset_ns
        boot_ns = self.clocks.boottime_ns()
        if self._asked_ns is None or boot_ns - self._asked_ns >= ASK_INTERVAL_NS:
            self._asked_ns, self._synchronised = boot_ns, self.clocks.is_synchronised()
        if abs(moved_ns) <= JUMP_NS:
            return 0
        self.jumps += 1
        self._jumped_ns = boot_ns
        return moved_ns

    @property
    def doubt(self) -> str:
        """Why nothing should be deleted by age now; empty if it may be."""
        if self._jumped_ns is not None and self.clocks.boottime_ns() - self._jumped_ns < PAUSE_AFTER_JUMP_NS:
            return "the wall clock has jumped within the last hour"
        if self.mode == "ntp" and self._synchronised is not True:
            return 'the kernel calls the wall clock unsynchronised; where no NTP runs, [site] clock = "trusted" says so'
        return ""

    def _difference_ns(self) -> int:
        return self.clocks.realtime_ns() - self.clocks.boottime_ns()
