"""Parts of a segment's key index: build one from batches, look keys up in one. gateway/log/FORMAT.md, section 10."""

from typing import NamedTuple, Self, TypeAlias

from gateway_native.batch import KeyFilter, Row, Selection

Buffer: TypeAlias = bytes | bytearray | memoryview

# position of the record in the log, position of its batch, CRC-32C of the batch's header and the record
Place: TypeAlias = tuple[int, int, int]

HEADER_BYTES: int
MAGIC: bytes
RECORDS_MAX: int
HEAP_BYTES_MAX: int

SELECTED: int
LEFT_OUT: int
BEHIND: int
WRONG: int

class Part(NamedTuple):
    """The header of a part, checked. Offsets and positions are half-open ranges."""

    part_bytes: int
    segment_base: int
    log_from: int
    log_to: int
    offset_from: int
    offset_to: int
    first_crc: int
    last_crc: int
    keys: int
    records: int
    blocks: int
    index_bytes: int
    index_crc: int
    last_batch: int

def parse_part(data: bytes) -> Part | None:
    """The header at the start of `data`; None if it is not a sound one."""

class Builder:
    """Collects where each key's records are, batch by batch, until the part is full.

    Memory: 20 bytes a record and some 50 a key while collecting, and once more the part while `finish` makes it. Not
    for several threads at once.
    """

    def __new__(cls, segment_base: int, records_max: int = ..., heap_bytes_max: int = ...) -> Self: ...
    @property
    def full(self) -> bool:
        """It is time to `finish`."""

    @property
    def empty(self) -> bool:
        """No batch was added since the last `finish`."""

    def add(self, data: Buffer, stop: int, origin: int) -> int:
        """Take the batches in data[:stop], which `batch.scan` found sound; data begins at byte `origin` of the log.

        Returns where it stopped: at `stop`, at the batch after which it is full, or at one that cannot be indexed
        (compressed, a control batch, or with times of the log's own), where it then stays. The GIL is released.
        """

    def finish(self) -> bytes:
        """The part, and begin the next one. ValueError if it is empty."""

def find_block(index: bytes, blocks: int, key: bytes) -> int:
    """The last block whose first key is not beyond `key`; 0 if there is none. `index`: block entries and first keys."""

def scan_block(block: bytes, prefix: bytes, exact: bool, keys: KeyFilter, found: dict[int, tuple[int, int]]) -> bool:
    """Add postings of keys that match: {position behind the blocks: (bytes, records)}.

    Of those only that begin with `prefix`, or, if `exact`, are just that.

    False: no later block can have such keys. ValueError for a block that is none.
    """

def decode_postings(data: bytes, log_from: int, places: list[Place]) -> None:
    """Add one key's postings, in their order. ValueError if the CRC-32C is wrong or they are none."""

def decode_record(
    header: bytes, data: Buffer, start: int, place: Place, selection: Selection, rows: list[Row]
) -> tuple[int, int]:
    """Decode the record whose bytes begin at data[start], of the batch with that header, if it is selected.

    Returns SELECTED (the row was added), LEFT_OUT, BEHIND (neither this nor a later batch is selected), or WRONG (it
    is not what the index says), and how many bytes from `start` on are wanted if data ends before the record; else 0.
    """
