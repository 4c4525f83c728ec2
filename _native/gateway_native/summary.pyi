from typing import NamedTuple

BYTES: int
INDEXES_WHOLE: int
MAGIC: bytes

class Summary(NamedTuple):
    base_offset: int
    log_bytes: int
    next_offset: int
    first_timestamp: int
    max_timestamp: int
    index_crc: int
    time_crc: int
    flags: int = 1

def encode(summary: Summary) -> bytes: ...
def parse(data: bytes, position: int = 0) -> Summary | None: ...
