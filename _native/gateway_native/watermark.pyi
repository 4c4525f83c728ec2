from os import PathLike
from typing import NamedTuple

READ_ATTEMPTS: int
READ_PAUSE_SECONDS: float

class Watermark(NamedTuple):
    epoch: int
    segment_base: int
    position: int
    durable_offset: int

def encode(epoch: int, segment_base: int, position: int, durable_offset: int) -> bytes: ...
def parse(data: bytes) -> Watermark | None: ...
def read(path: str | PathLike[str]) -> Watermark | None: ...
