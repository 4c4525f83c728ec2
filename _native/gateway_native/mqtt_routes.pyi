import re
from collections.abc import Iterable
from typing import Final, Self, TypeAlias

PLACEHOLDER: Final[re.Pattern[bytes]]
ROUTES_CHEAP_MAX: Final = 4

_Spec: TypeAlias = (
    tuple[bytes, int | bytes] | tuple[bytes, int | bytes, bytes | None] | tuple[bytes, int | bytes, bytes | None, bool]
)

def filter_match(filter: bytes, topic: bytes) -> bool: ...  # noqa: A002  # the field's own word

class Routes:
    """Topic filters and where they lead to; the first filter that matches a topic decides."""

    def __new__(cls, routes: Iterable[_Spec], *, overflow: int | None = None) -> Self: ...
    @property
    def filters(self) -> tuple[bytes, ...]: ...
    @property
    def streams(self) -> tuple[int | bytes, ...]: ...
    @property
    def partitions(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def find(self, topic: bytes) -> int | None: ...
    def target(self, topic: bytes) -> tuple[int | bytes | None, bytes] | None: ...
