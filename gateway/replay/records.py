"""Records as Python objects: what iterating over a stream yields."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gateway.clock import parse_duration
from gateway.errors import DamageWarning
from gateway.log.chunks import Decode, Rows
from gateway.log.gap import CLOCK_HEADER, GAP_HEADER, ClockStep, Gap, parse_clock, parse_gap
from gateway.log.segment import Segment
from gateway.replay.columnar import Columnar, Shape, Shaped, library

if TYPE_CHECKING:
    from gateway_native.batch import Row, Selection

    from gateway.log.partition import Limit, PartitionReader
    from gateway.log.segment import Damage
    from gateway.replay.remote import RemoteReader
    from gateway.replay.wide import Aggregate, Wide

OnGap = Literal["gap", "raise", "skip"]

# The header of MQTT messages whose retain flag was set.
RETAIN_HEADER = "retain"

# So many damaged places are listed, and warned of.
GAPS_MAX = 10_000

# So much of a value is in a record's repr.
_VALUE_SHOWN_BYTES = 200

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(timestamp_ms: int, zone: tzinfo) -> datetime:
    """Milliseconds since 1970-01-01 UTC as an aware datetime."""
    return (_EPOCH + timedelta(milliseconds=timestamp_ms)).astimezone(zone)


@dataclass(frozen=True, slots=True)
class Record:
    """One event: what was published or filmed, when the gateway received it, and its place in the stream."""

    offset: int
    timestamp_ms: int
    """The gateway's receive time, ms since 1970-01-01 UTC."""
    key: bytes | None
    """The MQTT topic, or the camera's name."""
    value: bytes | None
    """The MQTT payload, or one access unit (Annex B)."""
    headers: tuple[tuple[str, bytes], ...]
    """Names and values in their order; a name may occur more than once."""
    zone: tzinfo = field(default=UTC, repr=False, compare=False)

    def __repr__(self) -> str:
        """With the beginning of a large value: a picture of some MiB would keep a notebook busy for minutes."""
        value = self.value
        if value is not None and len(value) > _VALUE_SHOWN_BYTES:
            shown = f"{value[:_VALUE_SHOWN_BYTES]!r}… ({len(value):,} bytes)"
        else:
            shown = repr(value)
        return (
            f"Record(offset={self.offset}, timestamp_ms={self.timestamp_ms}, key={self.key!r}, value={shown}, "
            f"headers={self.headers!r})"
        )

    @property
    def timestamp(self) -> datetime:
        """The gateway's receive time, in the site's time zone."""
        return moment(self.timestamp_ms, self.zone)

    def header(self, name: str) -> bytes | None:
        """The last header of that name; None if there is none."""
        for found, value in reversed(self.headers):
            if found == name:
                return value
        return None

    @property
    def gap(self) -> Gap | None:
        """What was lost here, if this is not a record of a source but the gateway's own about a loss."""
        value = self._own(GAP_HEADER)
        with contextlib.suppress(ValueError):  # perhaps a newer version's
            return parse_gap(value) if value is not None else None
        return None

    @property
    def clock_step(self) -> ClockStep | None:
        """How the clock stepped here, if this is the gateway's own record about that."""
        value = self._own(CLOCK_HEADER)
        with contextlib.suppress(ValueError):
            return parse_clock(value) if value is not None else None
        return None

    def _own(self, name: str) -> bytes | None:
        """A header of the gateway's own records, which have neither key nor value."""
        return self.header(name) if self.key is None and self.value is None else None


class GapReport:
    """What becomes of damage that reading meets: an error, a gap that is told, or one that is only listed."""

    def __init__(
        self, damage: OnGap, warned: set[tuple[Path, int]], on_gap: Callable[[Damage], None] | None = None
    ) -> None:
        """warned: places that a warning was given of; further ones are added. on_gap: is called instead of warning."""
        if damage not in ("gap", "raise", "skip"):
            raise ValueError(f'damage is "gap", "raise" or "skip", not {damage!r}')
        self._damage = damage
        self._warned = warned
        self._on_gap = on_gap
        self.gaps: list[Damage] = []

    @property
    def passes_over(self) -> Callable[[Damage], None] | None:
        """What is called at damage; None: it is an error."""
        return None if self._damage == "raise" else self._add

    def _add(self, damage: Damage) -> None:
        if len(self.gaps) < GAPS_MAX:
            self.gaps.append(damage)
        if self._on_gap is not None:
            self._on_gap(damage)
            return
        place = (damage.path, damage.position)
        if self._damage == "gap" and place not in self._warned:
            if len(self._warned) < GAPS_MAX:
                self._warned.add(place)
            warnings.warn(DamageWarning(damage), stacklevel=2)


def without_retained(rows: list[Row]) -> list[Row]:
    """Only what was published while the gateway listened: no record whose sender or broker set the retain flag.

    No sender can forge or hide the header: a user property of that name is stored with `user.` before it.
    """
    return [row for row in rows if not row[4] or all(name != RETAIN_HEADER for name, _ in row[4])]


class Records(Columnar, Iterable[Record]):
    """The records of a range, read while one iterates; each iteration reads anew, up to what is durable by then.

    As columns, typed if wanted: `to_arrow`, `to_batches`, `to_polars`, `to_pandas`, `to_duckdb`, and `wide`.

    Memory stays bounded: one piece of the log (512 KiB, or one larger record) is decoded at a time. `gaps` lists what
    the last iteration passed over, with offsets, file and byte position: at most the first 10,000 places.
    """

    def __init__(
        self,
        reader: PartitionReader | RemoteReader,
        selection: Selection,
        zone: tzinfo,
        report: GapReport,
        *,
        retained: bool = True,
    ) -> None:
        self._reader = reader
        self._retained = retained
        self._selection = selection
        self._zone = zone
        self._report = report

    def __repr__(self) -> str:
        return "<gateway.Records, read when they are iterated over, or by to_arrow(), to_polars(), to_pandas() …>"

    @property
    def gaps(self) -> list[Damage]:
        """Damaged places that the last iteration passed over, in the order of their offsets."""
        return self._report.gaps

    @property
    def damages(self) -> list[Damage]:
        """The same as `gaps`."""
        return self._report.gaps

    def __iter__(self) -> Iterator[Record]:
        return (make_record(row, self._zone) for row in self.rows())

    def rows(self) -> Iterator[Row]:
        """The same as plain tuples (offset, timestamp_ms, key, value, headers): several times as fast."""
        for rows in self.chunks():
            yield from rows

    def chunks(self) -> Iterator[list[Row]]:
        """The same tuples in lists, as they were decoded: at most what 512 KiB of log, or one large batch, hold."""
        self._report.gaps = []
        chunks = self._reader.chunks(self._selection, on_damage=self._report.passes_over)
        return chunks if self._retained else map(without_retained, chunks)

    def limit(self) -> Limit:
        """What is durable now."""
        return self._reader.limit()

    def decoded(
        self,
        decode: Decode[Rows],
        limit: Limit,
        open_segment: Callable[[Path, int], Segment] | None = None,
        *,
        quiet: bool = False,
    ) -> Iterator[Rows | list[Row]]:
        """The same as `decode` gives them, or as rows, up to `limit`. Messages that were retained are among them.

        quiet: damage that is passed over is not told, as the range is read once more for its columns.
        """
        self._report.gaps = []
        on_damage = self._report.passes_over
        if quiet and on_damage is not None:
            on_damage = _say_nothing
        return self._reader.decoded(
            self._selection,
            decode,
            limit,
            on_damage=on_damage,
            open_segment=open_segment or Segment,
        )

    @property
    def retained(self) -> bool:
        """Whether MQTT messages whose retain flag was set are wanted."""
        return self._retained

    @property
    def zone(self) -> tzinfo:
        """The site's time zone."""
        return self._zone

    def shaped(self, shape: Shape) -> Shaped:
        from gateway.replay.columns import shape_records

        return shape_records(self, shape)

    def wide(
        self,
        every: str | None = None,
        agg: Aggregate = "last",
        *,
        values: Literal["float", "json", "cbor"] = "float",
        schema: Any = None,
    ) -> Wide:
        """A column per key: one row for each interval of `every` in which anything came, null where a key had nothing.

        every: a duration ("1s", "5m"); intervals are counted from 1970-01-01 UTC, and `timestamp` is where one begins.
        None: a row for each timestamp. agg: what an interval's values become: "last", "first", "mean", "min", "max",
        "sum" or "count". values, schema: as for `to_arrow`; a payload of several fields gives a column for each,
        named `key.field`. UsageError for more than 10,000 columns.
        """
        library("pyarrow", "Arrow")
        from gateway.replay.wide import Wide

        every_ns = None if every is None else parse_duration(every)
        return Wide(self, every_ns, agg, Shape(values=values, schema=schema, key="dictionary"))


def _say_nothing(_: Damage) -> None:
    pass


def make_record(row: Row, zone: tzinfo) -> Record:
    """A decoded row as a record."""
    offset, timestamp_ms, key, value, headers = row
    return Record(offset, timestamp_ms, key, value, tuple(headers), zone)
