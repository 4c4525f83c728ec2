"""``gateway read``: the records of a stream, on stdout."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gateway.commands.common import check_range, command_with_examples, data_options, say, values_are_usage
from gateway.errors import DamageError, GatewayError, UsageError
from gateway.replay import text as output

if TYPE_CHECKING:
    from gateway import Cursor, Record, Stream
    from gateway.log.segment import Damage

# With --cursor and --follow.
COMMIT_INTERVAL_S = 1.0

_OFFSETS = re.compile(r"(-?\d+)?:(-?\d+)?")


@command_with_examples(
    "read",
    "Print the records of a stream.",
    """
    gateway read telemetry --start -10m
    gateway read telemetry --start "2026-11-23 08:00" --end "2026-11-23 09:00" --json
    gateway read telemetry --key 'plant/+/+/temperature' --csv > temperatures.csv
    gateway read telemetry --offsets -10:
    gateway read telemetry --no-retained
    gateway read telemetry --follow --json | jq .value
    gateway read telemetry --cursor report.cursor --json | ./report
    """,
    takes_times=True,
)
@click.argument("stream")
@click.option("--start", metavar="TIME", help="From this time on (inclusive).")
@click.option("--end", metavar="TIME", help="Up to this time (exclusive).")
@click.option(
    "--key", "keys", metavar="FILTER", multiple=True, help="Only keys that match (+ and # as in MQTT); repeatable."
)
@click.option(
    "--offsets", metavar="A:B", help="From offset A up to, not including, B; negative ones count from the end."
)
@click.option("--no-retained", is_flag=True, help="Leave out MQTT messages whose retain flag was set.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many records.")
@click.option("--follow", is_flag=True, help="Go on with new records as they become durable. Alone: only new ones.")
@click.option(
    "--cursor",
    "cursor_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Go on where an earlier call with this file ended; begin at --start or the oldest record.",
)
@click.option("--json", "shape", flag_value="json", help="One JSON object a line.")
@click.option("--csv", "shape", flag_value="csv", help="CSV with a heading.")
@data_options
def command(
    stream: str,
    start: str | None,
    end: str | None,
    keys: tuple[str, ...],
    offsets: str | None,
    no_retained: bool,
    limit: int | None,
    follow: bool,
    cursor_path: Path | None,
    shape: Literal["json", "csv"] | None,
    data: Path,
) -> int:
    """Print the records of STREAM.

    TIME is ISO 8601 text ("2026-11-23 08:00", in the site's zone unless it has one), "now", or
    relative: -10m, -2h, -1d. Records that damage costs are named on stderr (with --json also in their place, as
    {"gap": …}); all others are printed, and the exit code is 4. With --cursor, what was printed is noted in FILE at the
    end, and about once a second until then.
    """
    import gateway

    if follow and end is not None:
        raise UsageError("--follow never ends, so --end makes no sense with it.")
    opened = gateway.open(data)[stream]
    gaps = _Gaps(shape)
    if cursor_path is not None:
        if end is not None or offsets is not None:
            raise UsageError(
                "--cursor says where to begin, and it ends at what is durable: leave --end and --offsets out."
            )
        with values_are_usage():
            cursor = opened.cursor(cursor_path, start if start is not None else "start")
        _print_from_cursor(cursor, list(keys) or None, not no_retained, limit, shape, follow, gaps)
        return DamageError.exit_code if gaps.count else 0
    with values_are_usage():
        check_range(opened.zone, start, end)
        records = _records(opened, start, end, list(keys) or None, offsets, follow, gaps, not no_retained)
    printed = _print(itertools.islice(records, limit) if limit else records, shape, flush_each=follow)
    if not printed and not gaps.count:
        _say_what_there_is(opened, keys)
    return DamageError.exit_code if gaps.count else 0


def _print_from_cursor(
    cursor: Cursor,
    keys: list[str] | None,
    retained: bool,
    limit: int | None,
    shape: Literal["json", "csv"] | None,
    follow: bool,
    gaps: _Gaps,
) -> None:
    """Print, then note: what was printed but not noted is printed again."""
    if cursor.missed:
        say(f"{cursor.missed:,} records were deleted by retention before they were read.")
    read = cursor.follow if follow else cursor.read
    records: Iterable[Record] = read(keys=keys, retained=retained, on_gap=gaps)
    try:
        _print(_noting(cursor, itertools.islice(records, limit) if limit else records), shape, flush_each=follow)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.flush()
        _commit(cursor)
        raise
    _commit(cursor)
    if cursor.lag:
        say(f"{cursor.lag:,} records more are there.")


def _noting(cursor: Cursor, records: Iterable[Record]) -> Iterator[Record]:
    """Commits about once a second what the printer has taken and written."""
    noted = time.monotonic()
    for record in records:
        yield record
        if time.monotonic() - noted >= COMMIT_INTERVAL_S:
            sys.stdout.flush()
            _commit(cursor)
            noted = time.monotonic()


def _commit(cursor: Cursor) -> None:
    try:
        cursor.commit()
    except OSError as error:
        raise GatewayError(
            f"The cursor {cursor.path} cannot be written: {error.strerror or error}. What was printed since it was "
            "last noted will be printed again."
        ) from error


class _Gaps:
    """Tells of what is missing at the moment when it would be printed."""

    def __init__(self, shape: str | None) -> None:
        self._as_json = shape == "json"
        self.count = 0

    def __call__(self, gap: Damage) -> None:
        self.count += 1
        say(f"{gap}; going on behind it.")
        if self._as_json:
            sys.stdout.write(output.gap_as_json(gap))


def _records(
    stream: Stream,
    start: str | None,
    end: str | None,
    keys: list[str] | None,
    offsets: str | None,
    follow: bool,
    on_gap: _Gaps,
    retained: bool,
) -> Iterable[Record]:
    span = parse_offsets(offsets, stream.log_start_offset, stream.durable_offset)
    if not follow:
        return stream.read(start=start, end=end, keys=keys, offsets=span, on_gap=on_gap, retained=retained)
    return _following(stream, start, keys, span, on_gap, retained)


def _following(
    stream: Stream,
    start: str | None,
    keys: list[str] | None,
    span: tuple[int, int | None] | None,
    on_gap: _Gaps,
    retained: bool,
) -> Iterable[Record]:
    """What there is from the start on, if one was named, then what comes."""
    end = stream.durable_offset
    if start is None and span is None:
        return stream.follow(end, keys=keys, on_gap=on_gap, retained=retained)
    found = stream.read(start=start, keys=keys, offsets=span, on_gap=on_gap, retained=retained)
    earlier = itertools.takewhile(lambda record: record.offset < end, found)
    if span is not None and span[1] is not None and span[1] <= end:
        return earlier
    until = span[1] if span is not None and span[1] is not None else sys.maxsize
    followed = stream.follow(end, keys=keys, on_gap=on_gap, retained=retained)
    later = itertools.takewhile(lambda record: record.offset < until, followed)
    return itertools.chain(earlier, later)


def parse_offsets(text: str | None, first: int, end: int) -> tuple[int, int | None] | None:
    """``A:B`` as a half-open range; either side may be left out, negative ones count from the durable end."""
    if text is None:
        return None
    match = _OFFSETS.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--offsets {text!r} is not a range; write 100:200, 100: or -10: (the last ten).")
    low = first if match[1] is None else int(match[1])
    high = None if match[2] is None else int(match[2])
    low = max(first, end + low) if low < 0 else low
    high = max(first, end + high) if high is not None and high < 0 else high
    if high is not None and high < low:
        raise UsageError(f"--offsets {text!r} ends before it starts.")
    return low, high


def _say_what_there_is(stream: Stream, keys: tuple[str, ...]) -> None:
    """Nothing was found: a range or filter that is not meant so looks the same as a quiet sensor."""
    known = stream.describe()
    if not known["records"]:
        say(f"{stream.name!r} holds no records.")
        return
    oldest, newest = (known[name].isoformat(timespec="milliseconds") for name in ("oldest", "newest"))
    matching = " with such a key" if keys else ""
    say(
        f"No record{matching} is in that range; {stream.name!r} has the offsets {known['log_start_offset']} to "
        f"{known['durable_offset'] - 1}, from {oldest} to {newest}."
    )


def _print(records: Iterable[Record], shape: str | None, *, flush_each: bool) -> int:
    """How many there were."""
    formatter: output.Formatter = {"json": output.as_json, "csv": output.as_csv}.get(shape or "", output.as_text)
    write = sys.stdout.write
    if shape == "csv":
        write(output.csv_line(output.CSV_COLUMNS))
    count = 0
    for record in records:
        write(formatter(record))
        count += 1
        if flush_each:
            sys.stdout.flush()
    return count
