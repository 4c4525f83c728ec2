"""A log at a distance: `gateway.open("kafka://host:port")` reads a gateway's endpoint, or any Kafka broker.

A topic with one partition is the stream of its name; of one with several each partition is a stream, ``topic:0``. What
depends on files is not there: sizes and segments are 0.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway_native import batch

from gateway.errors import FormatError, StreamNotFound, UsageError
from gateway.kafka import client as kafka
from gateway.log.compression import expanded
from gateway.log.layout import FORMAT, Meta
from gateway.log.partition import TIME_SLACK_MS, Limit, TimeRange
from gateway.replay.log import Log, Stream

if TYPE_CHECKING:
    from gateway.log.chunks import OnDamage

SCHEMES = ("kafka", "kafkas")
PORT = 9092
_LATEST, _EARLIEST, _MAX_TIMESTAMP = -1, -2, -3


class RemoteReader:
    """Reads one partition as `PartitionReader` does. Any number of threads; one request at a time."""

    by_watermark = True

    def __init__(self, client: kafka.Client, lock: threading.Lock, partition: kafka.Partition) -> None:
        self.directory = Path(f"{partition.topic}-{partition.number}")
        self._client = client
        self._lock = lock
        self._partition = partition
        host, port = client.address
        self.identity = f"kafka://{host}:{port}"
        """What a cursor knows the log by."""

    def _offset(self, timestamp: int) -> tuple[int, int]:
        with self._lock:
            return self._client.offset(self._partition, timestamp)

    @property
    def log_start_offset(self) -> int:
        """The first offset that is there."""
        return self._offset(_EARLIEST)[0]

    def limit(self) -> Limit:
        """How far it can be read now: the high watermark."""
        return Limit(0, 0, self._offset(_LATEST)[0])

    def segments(self) -> list[int]:
        """Not known at a distance."""
        return []

    def size_bytes(self) -> int:
        """Not known at a distance."""
        return 0

    def segment_count(self) -> int:
        """Not known at a distance."""
        return 0

    def offset_of_time(self, timestamp: int) -> int:
        """The first offset whose record is not earlier than `timestamp` (ms); the end if there is none."""
        found = self._offset(max(timestamp, 0))[0]
        return found if found >= 0 else self.limit().offset

    def time_range(self) -> TimeRange | None:
        """Times of the first record and of the latest of the last batch; None while there is none."""
        oldest = newest = None
        limit = self.limit()
        for rows in self.chunks(batch.Selection(offset_to=self.log_start_offset + 1), limit):
            oldest = rows[0][1]
        for rows in self.chunks(batch.Selection(offset_from=limit.offset - 1), limit):
            newest = rows[-1][1]
        return TimeRange(oldest, newest) if oldest is not None and newest is not None else None

    def chunks(
        self, selection: batch.Selection, limit: Limit | None = None, *, on_damage: OnDamage | None = None
    ) -> Iterator[list[batch.Row]]:
        """The selected records, batch by batch. Damage is an error: whoever serves them has to know of it."""
        end = min(selection.offset_to, (limit or self.limit()).offset)
        position = max(selection.offset_from, self.log_start_offset)
        if selection.time_from > 0:
            position = max(position, self.offset_of_time(selection.time_from))
        selection = batch.Selection(
            offset_from=position,
            offset_to=end,
            time_from=selection.time_from,
            time_to=selection.time_to,
            time_slack=TIME_SLACK_MS,
            keys=selection.keys,
        )
        while position < end:
            data = self._fetch(position)
            if data is None:
                position = max(self.log_start_offset, position + 1)
                continue
            found = kafka.batches(data)
            if not found:
                return  # what is left was compacted away
            for at, size in found:
                rows, position, begins = self._decoded(data[at : at + size], selection)
                if begins >= selection.time_stop:
                    return
                if rows:
                    yield rows

    def decoded(
        self,
        selection: batch.Selection,
        decode: object,
        limit: Limit | None = None,
        *,
        on_damage: OnDamage | None = None,
        open_segment: object = None,
    ) -> Iterator[list[batch.Row]]:
        """As rows, whatever `decode` would make of files: there are none to open here."""
        return self.chunks(selection, limit, on_damage=on_damage)

    def _fetch(self, offset: int) -> bytes | None:
        """None: retention has deleted it meanwhile."""
        with self._lock:
            try:
                return self._client.fetch(self._partition, offset)
            except kafka.KafkaError as error:
                if error.code != kafka.OFFSET_OUT_OF_RANGE:
                    raise
                return None

    def _decoded(self, data: bytes, selection: batch.Selection) -> tuple[list[batch.Row], int, int]:
        """The batch's selected records, the offset behind it, and its first time."""
        base = int.from_bytes(data[:8], "big")
        following = base + int.from_bytes(data[23:27], "big") + 1
        begins = int.from_bytes(data[27:35], "big", signed=True)
        # The leader's epoch, which is not under the checksum, is always 0 here.
        sound = data[:12] + bytes(4) + data[16:]
        try:
            try:
                rows = batch.decode(sound, selection=selection)
            except batch.UnsupportedBatch:
                rows = batch.decode(expanded(sound), selection=selection)
            return rows, following, begins
        except FormatError as error:
            raise FormatError(f"{self.directory}, offset {base}: {error}.") from None
        except batch.BatchError as error:
            raise FormatError(f"{self.directory}: the batch at offset {base} came damaged: {error}.") from None


class RemoteLog(Log):
    """The streams of a gateway, or the topics of a Kafka cluster. `gateway.open("kafka://…")` makes one."""

    def __init__(self, url: str, *, login: kafka.Login | None = None, timezone: str = "UTC") -> None:
        """timezone: in which times without one are meant, as a broker knows none. Nothing is connected yet."""
        self.path = Path(url)
        self.meta = Meta(FORMAT, url, timezone, datetime.now(UTC).isoformat())
        self.meta.zone  # noqa: B018  # FormatError for one that is unknown
        self._url = url
        self._lock = threading.Lock()
        self._client = kafka.Client(_address(url), login or kafka.Login())

    def __repr__(self) -> str:
        return f"<gateway.Log {self._url!r}>"

    def close(self) -> None:
        """Close the connections; reading makes new ones."""
        with self._lock:
            self._client.close()

    def _streams(self) -> dict[str, kafka.Partition]:
        with self._lock:
            found = self._client.partitions()
        several = {one.topic for one in found if one.number}
        return {f"{one.topic}:{one.number}" if one.topic in several else one.topic: one for one in found}

    def streams(self) -> list[str]:
        """Names of the streams that are there now, sorted."""
        return sorted(self._streams())

    def __getitem__(self, name: str) -> Stream:
        """The stream of that name. StreamNotFound, which names those there are."""
        found = self._streams()
        if name not in found:
            raise StreamNotFound(name, sorted(found))
        reader = RemoteReader(self._client, self._lock, found[name])
        return Stream(name, reader.directory, self.timezone, reader=reader)


def open_remote(
    url: str, *, username: str | None, password: str | None, tls_ca: str | Path | None, timezone: str
) -> RemoteLog:
    """See `gateway.open`. UsageError for a URL that means nothing."""
    tls = ssl.create_default_context(cafile=tls_ca) if url.startswith("kafkas://") else None
    if tls_ca is not None and tls is None:
        raise UsageError("tls_ca has an effect only with kafkas://, which is Kafka over TLS.")
    return RemoteLog(url, login=kafka.Login(username, password, tls), timezone=timezone)


def _address(url: str) -> tuple[str, int]:
    """The sentence does not show the URL, which may hold a password."""
    example = "write for example 'kafka://edge-7:9092'; user name and password are arguments of their own"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        raise UsageError(f"This is not a URL; {example}.") from None
    if parts.scheme not in SCHEMES or not host or "@" in parts.netloc or parts.path not in ("", "/") or parts.query:
        raise UsageError(f"The URL is not one of a Kafka broker; {example}.")
    return host, port
