"""Times, durations and sizes: what people write, and the integers everything else works with.

Inside Gateway an instant is an ``int`` of nanoseconds since 1970-01-01 UTC, a duration an ``int`` of nanoseconds, a
size an ``int`` of bytes. A bare number from a person is refused everywhere, because nobody can tell its unit.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from fractions import Fraction
from typing import Any

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000

# Stamps are signed 64-bit nanoseconds: 1677 to 2262.
STAMP_MIN, STAMP_MAX = -(2**63), 2**63 - 1

# struct timex begins with modes (int), offset, freq, maxerror, esterror (long), status (int); with room to spare.
_TIMEX_WORDS = 64
_TIMEX_STATUS = 5 * ctypes.sizeof(ctypes.c_long)
_STA_UNSYNC, _TIME_ERROR = 0x40, 5

_DURATION_UNITS_NS = {
    "ns": 1,
    "us": NS_PER_US,
    "µs": NS_PER_US,
    "μs": NS_PER_US,
    "ms": NS_PER_MS,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "min": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
    "d": 86400 * NS_PER_S,
    "w": 7 * 86400 * NS_PER_S,
}
_SIZE_UNITS_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµμ]+)\s*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_RELATIVE = re.compile(r"(?:now)?\s*([+-])\s*(.+)")
# A stamp with a fraction of a second; datetime keeps six digits of it, Gateway nine.
_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TIME_EXAMPLES = '"2026-11-23 08:00", "2026-11-23T08:00:00.250+01:00", "-10m" or "now"'


def realtime_ns() -> int:
    """The wall clock, in ns since 1970-01-01 UTC: what records are stamped with."""
    return time.time_ns()


def monotonic_ns() -> int:
    """A clock that only goes forward, in ns since some unspecified start: for waiting and measuring."""
    return time.monotonic_ns()


def boottime_ns() -> int:
    """As `monotonic_ns`, but it goes on while the machine is suspended: what a jump of the wall clock is told by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def is_synchronised() -> bool | None:
    """Does the kernel call the wall clock synchronised (by NTP or PTP)? None where it cannot be asked.

    Source: adjtimex(2). With modes = 0 nothing is changed, which needs no privilege.
    """
    timex = (ctypes.c_long * _TIMEX_WORDS)()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):  # not Linux
        return None
    if state < 0:
        return None
    status = ctypes.cast(timex, ctypes.POINTER(ctypes.c_int))[_TIMEX_STATUS // ctypes.sizeof(ctypes.c_int)]
    return state != _TIME_ERROR and not status & _STA_UNSYNC


def parse_duration(text: object) -> int:
    """``"5ms"``, ``"30d"``, ``"1h30m"`` as nanoseconds.

    Units: ns, us, ms, s, m (minutes), h, d (24 hours), w. Raises ValueError, also for a bare number.
    """
    if isinstance(text, bool) or not isinstance(text, str):
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f'A duration needs a unit: "{text}s" for seconds, "{text}ms" for milliseconds.')
        raise ValueError('A duration is text such as "5ms", "30s" or "30d".')
    stripped = text.strip()
    if stripped == "0":
        return 0
    if _NUMBER.fullmatch(stripped):
        raise ValueError(f'A duration needs a unit: "{stripped}s" for seconds, "{stripped}ms" for milliseconds.')
    total = Fraction(0)
    position = 0
    while match := _DURATION_PART.match(stripped, position):
        unit = _DURATION_UNITS_NS.get(match[2])
        if unit is None:
            raise ValueError(f"{text!r} has an unknown unit {match[2]!r}: ns, us, ms, s, m, h, d and w are known.")
        total += Fraction(match[1]) * unit
        position = match.end()
    if position == 0 or position != len(stripped):
        raise ValueError(f'{text!r} is not a duration; write for example "5ms", "30s", "1h30m" or "30d".')
    if total > STAMP_MAX:
        raise ValueError(f"{text!r} is longer than the 292 years that fit.")
    return int(total)


def parse_size(text: object) -> int:
    """``"2GiB"``, ``"500MB"``, ``"100B"`` as bytes.

    KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB powers of 1000; upper and lower case are the same. Raises
    ValueError with a whole sentence, also for a bare number.
    """
    if isinstance(text, bool) or not isinstance(text, str):
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f'A size needs a unit: "{text}B" for bytes, "{text}MiB" for mebibytes.')
        raise ValueError('A size is text such as "64KiB", "500MB" or "2GiB".')
    stripped = text.strip()
    if stripped == "0":
        return 0
    if _NUMBER.fullmatch(stripped):
        raise ValueError(f'A size needs a unit: "{stripped}B" for bytes, "{stripped}MiB" for mebibytes.')
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise ValueError(f'{text!r} is not a size; write for example "64KiB", "500MB" or "2GiB".')
    unit = _SIZE_UNITS_BYTES.get(match[2].lower())
    if unit is None:
        letter = match[2][0].upper()
        hint = f'; did you mean "{match[1]}{letter}iB"?' if letter in "KMGT" else "; KiB, MiB, GiB and TiB are known."
        raise ValueError(f"{text!r} has an unknown unit {match[2]!r}{hint}")
    return int(Fraction(match[1]) * unit)


def parse_time(value: Any, zone: tzinfo, now_ns: Callable[[], int] = realtime_ns) -> int:
    """An instant as ns since 1970-01-01 UTC.

    Accepts ISO 8601 text (a date alone is its midnight), ``"now"``, a duration before or after now (``"-10m"``),
    datetime, date, ``numpy.datetime64`` and ``pandas.Timestamp`` (neither library is imported). What carries no zone is
    taken as local time in ``zone``, NumPy's stamps too; where the clocks go back the earlier of the two instants is
    meant, unless a datetime's ``fold`` says otherwise. Raises TypeError for a bare number, ValueError for anything that
    names no instant; both texts are whole sentences.
    """
    if isinstance(value, str):
        return _in_range(_parse_text(value, zone, now_ns), value)
    if isinstance(value, datetime):  # pandas' Timestamp is one
        if type(value).__name__ == "NaTType":
            raise ValueError("NaT names no instant.")
        extra_ns = int(getattr(value, "nanosecond", 0))
        plain = value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
        return _in_range(_localized(plain, zone) + extra_ns, value)
    if isinstance(value, date):
        return _in_range(_localized(datetime.combine(value, datetime.min.time()), zone), value)
    if type(value).__name__ == "datetime64" and hasattr(value, "astype"):
        return _in_range(_from_numpy(value, zone), value)
    if isinstance(value, int | float) or hasattr(value, "__index__") or hasattr(value, "__float__"):
        raise TypeError(
            f"{value!r} is a bare number, and nobody can tell its unit (seconds? milliseconds?); "
            f"give a datetime or text such as {_TIME_EXAMPLES}."
        )
    raise TypeError(f"A {type(value).__name__} is not a time; give a datetime or text such as {_TIME_EXAMPLES}.")


def format_time(instant_ns: int, zone: tzinfo, *, digits: int = 3) -> str:
    """ISO 8601 with offset, e.g. ``2026-11-23T08:13:04.250+01:00``, cut (never rounded) to ``digits`` of a second."""
    seconds, fraction_ns = divmod(instant_ns, NS_PER_S)
    moment = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    fraction = f".{fraction_ns:09d}"[: digits + 1] if digits else ""
    offset = moment.isoformat()[19:]
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}{offset}"


def format_duration(duration_ns: float) -> str:
    """A duration for people, two to three digits: ``850 µs``, ``5.0 ms``, ``12 s``, ``3 h 05 min``, ``30 d``."""
    if duration_ns < NS_PER_MS:
        return f"{duration_ns / NS_PER_US:.0f} µs"
    if duration_ns < 100 * NS_PER_MS:
        return f"{duration_ns / NS_PER_MS:.1f} ms"
    if duration_ns < NS_PER_S:
        return f"{duration_ns / NS_PER_MS:.0f} ms"
    seconds = duration_ns / NS_PER_S
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"


def format_size(size_bytes: float) -> str:
    """A size for people, three digits: ``512 B``, ``1.50 MiB``, ``64.0 GiB``."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size_bytes /= 1024
        if size_bytes < 1024 or unit == "TiB":
            break
    digits = 2 if size_bytes < 10 else 1 if size_bytes < 100 else 0
    return f"{size_bytes:.{digits}f} {unit}"


def _parse_text(text: str, zone: tzinfo, now_ns: Callable[[], int]) -> int:
    stripped = text.strip()
    if stripped.lower() == "now":
        return now_ns()
    if relative := _RELATIVE.fullmatch(stripped):
        distance_ns = parse_duration(relative[2])
        return now_ns() - distance_ns if relative[1] == "-" else now_ns() + distance_ns
    fraction_ns = 0
    if fraction := _FRACTION.search(stripped):
        fraction_ns = int(fraction[1][:9].ljust(9, "0"))
        stripped = stripped[: fraction.start()] + stripped[fraction.end() :]
    try:
        moment = datetime.fromisoformat(stripped.removesuffix("z") + "Z" if stripped.endswith("z") else stripped)
    except ValueError:
        raise ValueError(f"{text!r} is not a time; write for example {_TIME_EXAMPLES}.") from None
    return _localized(moment, zone) + fraction_ns


def _localized(moment: datetime, zone: tzinfo) -> int:
    """ns of a datetime, in ``zone`` if it has none. Refuses a local time that the clocks jumped over."""
    if moment.tzinfo is None:
        local = moment.replace(tzinfo=zone)
        if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) != moment.replace(fold=0):
            raise ValueError(
                f"{moment.isoformat(' ')} does not exist in {zone}: the clocks went forward over it; "
                "give the time with its offset, for example +01:00."
            )
        moment = local
    return (moment - _EPOCH) // timedelta(microseconds=1) * NS_PER_US


def _from_numpy(value: Any, zone: tzinfo) -> int:
    if str(value) == "NaT":
        raise ValueError("NaT names no instant.")
    seconds = int(value.astype("datetime64[s]").astype("int64"))
    # Only the rest below a second is taken in ns, so that a stamp in seconds or days cannot overflow.
    rest_ns = int((value - value.astype("datetime64[s]")).astype("timedelta64[ns]").astype("int64"))
    try:
        local = _EPOCH.replace(tzinfo=None) + timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{value} is outside the years 1678 to 2261 that stamps can hold.") from None
    return _localized(local, zone) + rest_ns


def _in_range(instant_ns: int, value: object) -> int:
    if not STAMP_MIN <= instant_ns <= STAMP_MAX:
        raise ValueError(f"{value} is outside the years 1678 to 2261 that stamps can hold.")
    return instant_ns
