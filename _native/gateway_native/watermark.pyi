from os import PathLike
from typing import NamedTuple

BYTES: int
INDEXES_WHOLE: int
CLEAN: int
MAGIC: bytes
READ_ATTEMPTS: int
READ_PAUSE_SECONDS: float

class Watermark(NamedTuple):
    epoch: int
    segment_base: int
    position: int
    durable_offset: int
    last_timestamp: int = -1
    first_timestamp: int = -1
    max_timestamp: int = -1
    offset_of_max: int = 0
    last_time_entry: int = -1
    bytes_since_entry: int = 0
    index_bytes: int = 0
    time_bytes: int = 0
    index_crc: int = 0
    time_crc: int = 0
    flags: int = 0

def encode(mark: Watermark) -> bytes: ...
def parse(data: bytes) -> Watermark | None: ...
def read(path: str | PathLike[str]) -> Watermark | None: ...
