from collections.abc import Sequence
from typing import Self

class Publishers:
    acknowledged: int
    sent: int
    skipped: int
    cpu_ns: int
    elapsed_ns: int
    def __new__(
        cls,
        descriptors: Sequence[int],
        packet: bytes,
        *,
        window: int,
        id_at: int = -1,
        id_text: bool = False,
        ack_bytes: int = 0,
        ack_lines: int = 0,
    ) -> Self: ...
    def run(self, seconds: float, *, rate: float = 0.0) -> None: ...
    def latency_us(self, share: float) -> float: ...

def echo(listening: int) -> None: ...
