"""Record batches, version 2, as Kafka stores them: build, parse, check. The format is in gateway/log/FORMAT.md.

Source: Apache Kafka, clients/src/main/java/org/apache/kafka/common/record/DefaultRecordBatch.java and
DefaultRecord.java.
"""

from collections.abc import Iterable, Sequence
from typing import Self, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# offset, timestamp in ms since the epoch, key, value, headers
Row: TypeAlias = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]

# position, length in bytes, base offset, last offset, base timestamp, max timestamp (ms), records
Batch: TypeAlias = tuple[int, int, int, int, int, int, int]

HEADER_BYTES: int
LENGTH_PREFIX_BYTES: int
MAGIC: int

PROBLEM_NONE: int
PROBLEM_SHORT: int
PROBLEM_ZEROS: int
PROBLEM_LENGTH: int
PROBLEM_MAGIC: int
PROBLEM_EPOCH: int
PROBLEM_OFFSET: int
PROBLEM_COUNT: int
PROBLEM_CRC: int
PROBLEM_RECORDS: int

PROBLEM_TEXTS: dict[int, str]
CODECS: dict[int, str]

class BatchError(ValueError):
    """A batch is damaged, or the buffer ends before it does.

    ``position`` is where the batch starts in the buffer, ``problem`` one of PROBLEM_*.
    """

    position: int
    problem: int
    expected: int
    found: int
    def __init__(self, message: str, position: int, problem: int, expected: int = 0, found: int = 0) -> None: ...

class UnsupportedBatch(ValueError):
    """A batch is sound but compressed, whose records are not parsed here. ``codec`` names it."""

    codec: str
    position: int
    base_offset: int
    def __init__(self, codec: str, position: int, base_offset: int) -> None: ...

def crc32c(data: Buffer, value: int = 0, implementation: str = "auto") -> int:
    """CRC-32C (RFC 3720, appendix B.4) of `data`, going on from `value`.

    `implementation` is "auto" or one of `crc32c_implementations()`; ValueError for another.
    """

def crc32c_implementations() -> tuple[str, ...]:
    """What this processor can run, slowest first: "portable", then "sse4.2" or "armv8"."""

def encode_headers(headers: Iterable[tuple[str, bytes]]) -> bytes:
    """Headers as a record holds them, their count first. No headers: empty bytes, which a ring slot takes as none."""

def encode(
    records: Iterable[tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]], base_offset: int = 0
) -> bytes:
    """One finished batch of (timestamp_ms, key, value, headers) with consecutive offsets from `base_offset`.

    ValueError for no records or more than 2 GiB.
    """

class KeyFilter:
    """Which keys to take: a str is an MQTT topic filter ('+' one level, '#' the rest), bytes are an exact key.

    Source: MQTT 5.0, section 4.7; so a leading wildcard does not match a key that begins with '$'. A null key matches
    nothing. ValueError for a filter that MQTT does not allow.
    """

    def __new__(cls, filters: str | bytes | Iterable[str | bytes]) -> Self: ...
    @property
    def filters(self) -> tuple[str | bytes, ...]: ...
    def matches(self, key: bytes | None) -> bool: ...

class Selection:
    """Which records to decode: half-open ranges of offsets and times (ms), and keys. None sets no bound.

    `time_slack` (ms) is how far times may run backwards inside a segment: a batch that begins at `time_to` plus the
    slack, or later, ends the reading of that segment.
    """

    def __new__(
        cls,
        *,
        offset_from: int | None = None,
        offset_to: int | None = None,
        time_from: int | None = None,
        time_to: int | None = None,
        time_slack: int = 0,
        keys: KeyFilter | str | bytes | Iterable[str | bytes] | None = None,
    ) -> Self: ...
    @property
    def offset_from(self) -> int: ...
    @property
    def offset_to(self) -> int: ...
    @property
    def time_from(self) -> int: ...
    @property
    def time_to(self) -> int: ...
    @property
    def time_stop(self) -> int: ...
    @property
    def keys(self) -> KeyFilter | None: ...

def decode(
    buffer: Buffer, position: int = 0, *, check_crc: bool = True, selection: Selection | None = None
) -> list[Row]:
    """The records of the batch at `position`. A null header value comes as empty bytes; a control batch has none.

    Raises BatchError for damage, UnsupportedBatch for compression, ValueError for a position outside the buffer.
    """

def decode_chunk(
    buffer: Buffer, position: int, selection: Selection, *, expected_offset: int = -1, check_crc: bool = True
) -> tuple[list[Row], int, int, int]:
    """The selected records of all whole batches from `position` on.

    Base offsets must go on from `expected_offset` without gaps; -1 takes the first as it is. The leader epoch is 0.
    The CRC-32C of every batch is checked, because what its
    header says decides where reading ends. Returns the records, the position after
    the last batch, `wanted`, and the offset after the last batch (`expected_offset` if there was none). `wanted` is 0:
    go on reading at that position; above 0: the next batch (or its header) needs that many bytes; -1: nothing later in
    this segment is selected. Raises as `decode`, but only after everything before the damage has been returned: the
    call that starts at the damaged batch raises.
    """

def scan(
    buffer: Buffer,
    position: int = 0,
    *,
    origin: int = 0,
    expected_offset: int = -1,
    check_crc: bool = True,
    check_records: bool = False,
) -> tuple[list[Batch], int, int, int, int]:
    """Walk whole batches from `position` until the buffer ends or one is bad. The GIL is released.

    Checked: length, magic, leader epoch 0, base offset (from `expected_offset` on without gaps; -1 takes the first as
    it is), record count, CRC-32C, and with `check_records` every record. Returns the batches, the position after the
    last good one, PROBLEM_* there (PROBLEM_NONE: the buffer's end; PROBLEM_SHORT: it ends inside a batch, of which
    `expected` bytes are wanted), and what was expected and found: PROBLEM_TEXTS[problem].format(expected=…, found=…)
    is a sentence. All positions returned have `origin` added: where the buffer begins in its file.
    """

def find(buffer: Buffer, position: int, offset_min: int, offset_max: int) -> tuple[int, int]:
    """The next sound batch at or after `position` whose offsets lie in [offset_min, offset_max): the way past damage.

    Every byte is tried. Returns where it stopped and how many bytes are wanted there: 0, a sound batch begins here;
    more than the buffer holds from there, look again from that position with so many bytes. The GIL is released.
    """
