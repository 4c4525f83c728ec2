from typing import Any, Self

CAPACITY_MIN: int
CAPACITY_MAX: int
KEYFRAME: int
WANTS_ACK: int
GAP: int
NULL_KEY: int
NULL_VALUE: int
MARKS_MAX: int
PENDING: int
ACKED: int
FAILED: int
REFUSED: int

class Ring:
    """One ring, seen from its producing thread. Made by ``Writer.ring``."""

    def __new__(
        cls,
        owner: Any,
        name: str,
        capacity: int,
        partitions: int,
        partition_count: int,
        writer_fd: int,
        writer_sleeping: int,
    ) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> Any: ...
    @property
    def event_fd(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def largest_record(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    def append(
        self, partition: int, key: bytes, value: bytes, headers: bytes, timestamp_ns: int, flags: int = 0, mark: int = 0
    ) -> int: ...
    def offset_of(self, mark: int) -> int: ...
    def verdict(self, partition: int, sequence: int) -> int: ...
    @property
    def refusals_pending(self) -> bool: ...
    def confirm_refusals(self) -> None: ...
    def set_ack_interest(self, interested: bool) -> None: ...
    def clear_event(self) -> None: ...
