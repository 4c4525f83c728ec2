from typing import Any, Self

from gateway_native.ring import Ring

class Load:
    def __new__(
        cls,
        ring: Ring,
        value_bytes: int,
        *,
        partitions: int = 1,
        keys: int = 1000,
        flags: int = 0,
        latencies: bool = False,
    ) -> Self: ...
    owner: Any
    records: int
    acked: int
    full: int
    late_ns_max: int
    latency_ns_max: int
    def run(self, seconds: float, *, rate: float = 0.0, tick_ns: int = 1000000, records: int | None = None) -> None: ...
    def latency_us(self, share: float) -> float: ...
