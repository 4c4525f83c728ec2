from collections.abc import Sequence
from typing import Self

class Flood:
    def __new__(cls, descriptors: Sequence[int], payload_bytes: int, topics: int) -> Self: ...
    messages: int
    def run(self, seconds: float, messages_max: int) -> None: ...
