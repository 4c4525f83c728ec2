from typing import Any, Self

from gateway_native.ring import Ring
from gateway_native.storage import StorageTable

STEPS: dict[int, str]

class ManualClock:
    def __init__(self, monotonic_ns: int = 1_000_000_000, realtime_ns: int = 1_700_000_000_000_000_000) -> None: ...
    monotonic_ns: int
    realtime_ns: int

class Writer:
    reserve_bytes: int
    def __new__(
        cls,
        storage: str | StorageTable = "pwrite",
        buffer_bytes: int = 67108864,
        partitions_max: int = 1024,
        reserve_bytes: int = 0,
        syncfs_files: int = 0,
        clock: ManualClock | None = None,
    ) -> Self: ...
    @property
    def partitions_max(self) -> int: ...
    @property
    def storage(self) -> str: ...
    @property
    def health_fd(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def clock_step(self) -> tuple[int, int, int]: ...
    def clear_health(self) -> None: ...
    def ring(self, name: str, capacity: int) -> Ring: ...
    def add_partition(
        self,
        directory: str,
        *,
        epoch: int = 1,
        next_offset: int = 0,
        segment_base: int = -1,
        position: int = 0,
        index_bytes: int = 0,
        time_bytes: int = 0,
        index_crc: int = 0,
        time_crc: int = 0,
        indexes_whole: bool = True,
        bytes_since_entry: int = 0,
        first_timestamp: int = -1,
        max_timestamp: int = -1,
        offset_of_max: int = 0,
        last_time_entry: int = -1,
        last_timestamp: int = -1,
        manifest_bytes: int = -1,
        segment_bytes: int = 1073741824,
        segment_age_ms: int = 0,
        linger_ns: int = 5000000,
        ack_memory: bool = False,
        refuse_when_full: bool = False,
    ) -> int: ...
    def run_writer(self) -> None: ...
    def run_flusher(self) -> None: ...
    def step_writer(self) -> bool: ...
    def step_flusher(self) -> bool: ...
    def finish(self) -> bool: ...
    def flush(self, timeout_s: float = 30.0) -> bool: ...
    def roll(self, index: int) -> None: ...
    def retry(self) -> None: ...
    def stop(self, *, abandon: bool = False) -> None: ...
    def partition_state(self, index: int) -> dict[str, Any]: ...
    def refusals(self, index: int) -> dict[str, tuple[int, int, int, int]]: ...
