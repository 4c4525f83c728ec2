"""Record batches straight into the buffers of Apache Arrow arrays, without an object per record."""

from typing import Literal, Self, TypeAlias

from gateway_native.batch import Buffer, Row, Selection

Form: TypeAlias = Literal["none", "copy", "view", "codes"]

class Memory:
    """A finished buffer, read-only, by Python's buffer protocol. Freed with the last object that uses it."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

class Strings:
    """A column of byte strings, as Arrow lays it out.

    items: int64 offsets, one more than rows (form "copy"); 16-byte views ("view"); int32 codes ("codes").
    bytes: what the offsets point into; "codes": the distinct strings, with their int64 offsets in `ends`.
    validity: a bit for each row, lowest first, or None when no row is null.
    """

    form: Form
    items: Memory | None
    bytes: Memory | None
    ends: Memory | None
    distinct: int
    validity: Memory | None
    nulls: int

class Columns:
    """Decoded records.

    rows: how many. offset, timestamp: int64 each, timestamps as ns since 1970-01-01 UTC (those beyond the years 1677
    to 2262 at their bound). key, value: byte strings. not_text: keys that are not UTF-8. headers: int64 offsets by row
    into header_name and header_value; None unless asked for.
    sources: what views point into: an object, and how many of its bytes from the first on they may.
    """

    rows: int
    offset: Memory
    timestamp: Memory
    key: Strings
    value: Strings
    not_text: int
    headers: Memory | None
    header_name: Strings | None
    header_value: Strings | None
    sources: list[tuple[object, int]]

class ColumnBuilder:
    """Decodes records into columns. One thread at a time.

    keys, values: their form. headers: whether to keep them. without_header: records that have a header of that name are
    left out, and counted in `left_out`. `full` says that so many rows, or bytes, are in it: it is to be taken soon.
    """

    def __new__(
        cls,
        *,
        keys: Form = "copy",
        values: Form = "copy",
        headers: bool = False,
        without_header: bytes | None = None,
        rows_max: int = 256000,
        bytes_max: int = 67108864,
    ) -> Self: ...
    @property
    def rows(self) -> int: ...
    @property
    def not_text(self) -> int: ...
    @property
    def left_out(self) -> int: ...
    @property
    def full(self) -> bool: ...
    def decode(
        self, buffer: Buffer, position: int, selection: Selection, *, expected_offset: int = -1
    ) -> tuple[int, int, int, int]:
        """The same as `batch.decode_chunk`, whose checks, results and errors it has, with the number of rows added
        instead of records. The GIL is released.

        Columns with form "view" keep the buffer, or the object that a memoryview shows, until they are gone.
        MemoryError when there is none.
        """

    def add(self, rows: list[Row]) -> int:
        """Records that others decoded and selected, as `batch.decode_chunk` gives them; how many were added."""

    def take(self) -> Columns:
        """What was decoded since the last call."""
