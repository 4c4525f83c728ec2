"""The gateway's own records in a stream: what was lost, and where the clock stepped. FORMAT.md specifies both.

They have neither key nor value, which no sensor's or camera's record lacks both of, and one header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from urllib.parse import quote, unquote

from gateway_native.batch import encode_headers

GAP_HEADER = "gateway.gap"
CLOCK_HEADER = "gateway.clock"

Reason = Literal["full-disk", "failed-disk", "overload", "packet-loss", "camera-away", "damage", "retention"]
REASONS: tuple[Reason, ...] = get_args(Reason)

_GAP = re.compile(
    rb"reason=(?P<reason>[a-z-]+) count=(?P<count>\d+) bytes=(?P<bytes>\d+) "
    rb"first=(?P<first>-?\d+) last=(?P<last>-?\d+) source=(?P<source>[!-~]*)"
)
_CLOCK = re.compile(rb"old=(?P<old>-?\d+) new=(?P<new>-?\d+) cause=(?P<cause>[a-z-]+)")


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that are not in the stream, though they were offered to it or had been in it."""

    reason: Reason
    count: int
    """How many; 0 if that cannot be known."""
    bytes: int
    """Of their keys, values and headers; 0 if that cannot be known."""
    first_ms: int
    """Receive time of the first of them, ms since 1970-01-01 UTC; of their discovery if that cannot be known."""
    last_ms: int
    source: str
    """Whose they were: the listener, subscriber or camera by its configured name, or what found them missing."""


class ClockStep(NamedTuple):
    """The wall clock stepped: the last record's time before (ms), the first one's behind, and why."""

    old_ms: int
    new_ms: int
    cause: str


def encode_gap(gap: Gap) -> bytes:
    """The headers of its record, as a ring slot takes them."""
    text = (
        f"reason={gap.reason} count={gap.count} bytes={gap.bytes} first={gap.first_ms} last={gap.last_ms} "
        f"source={quote(gap.source, safe='')}"
    )
    return encode_headers([(GAP_HEADER, text.encode("ascii"))])


def parse_gap(value: bytes) -> Gap:
    """The header's value. ValueError if it is none."""
    found = _GAP.fullmatch(value)
    reason = next((known for known in REASONS if found and found["reason"] == known.encode()), None)
    if found is None or reason is None:
        raise ValueError(f"{value!r} is no {GAP_HEADER} header")
    count, size, first, last = (int(found[name]) for name in ("count", "bytes", "first", "last"))
    return Gap(reason, count, size, first, last, unquote(found["source"].decode("ascii")))


def parse_clock(value: bytes) -> ClockStep:
    """The header's value. ValueError if it is none."""
    found = _CLOCK.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no {CLOCK_HEADER} header")
    return ClockStep(int(found["old"]), int(found["new"]), found["cause"].decode("ascii"))
