"""How many may connect, how fast, and how long those wait who guess passwords. Clocks are passed in."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# Addresses whose failed logins are remembered; beyond that the one that failed longest ago goes.
FAILING_ADDRESSES_MAX = 10_000
# The first refusal waits so long, each further one twice as long.
DELAY_S_FIRST = 0.25
DELAY_S_MAX = 8.0
FORGOTTEN_AFTER_S = 600.0


class Bucket:
    """A token bucket: ``rate`` a second on average, one second's worth at once. Rate 0 is no limit."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._size = max(1.0, rate)
        self._tokens = self._size
        self._at = clock()

    def take(self) -> bool:
        """One more? False when this second's are used up."""
        if not self._rate:
            return True
        now = self._clock()
        self._tokens = min(self._size, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass
class _Failures:
    count: int
    at: float


class Admission:
    """Decides about sockets, by where they come from. One entry an address that has a socket, or failed lately."""

    def __init__(self, *, per_address_max: int, rate: float, clock: Callable[[], float]) -> None:
        """per_address_max: sockets at a time from one address; rate: new ones a second from all. 0 is no limit."""
        self._per_address_max = per_address_max
        self._clock = clock
        self._bucket = Bucket(rate, clock)
        self._sockets: dict[str, int] = {}
        self._failures: OrderedDict[str, _Failures] = OrderedDict()  # the longest ago first

    def enter(self, host: str) -> str | None:
        """A socket from this host: None, or why it is refused. Who was let in must `leave`."""
        address = group_of(host)
        if self._per_address_max and address and self._sockets.get(address, 0) >= self._per_address_max:
            return f"{self._per_address_max} connections come from this address already (connections_per_address_max)"
        if not self._bucket.take():
            return "too many new connections in this second (connect_rate)"
        if address:
            self._sockets[address] = self._sockets.get(address, 0) + 1
        return None

    def go_on(self, host: str) -> None:
        """A socket that was let in is counted once more, by who takes it over; both `leave`. It is never refused."""
        address = group_of(host)
        if address:
            self._sockets[address] = self._sockets.get(address, 0) + 1

    def leave(self, host: str) -> None:
        """A socket that was let in is gone."""
        address = group_of(host)
        if not address:
            return
        left = self._sockets[address] - 1
        if left:
            self._sockets[address] = left
        else:
            del self._sockets[address]

    def failed(self, host: str) -> float:
        """A login failed: for so many seconds its refusal is held back. Logins that are right never wait."""
        address, now = group_of(host), self._clock()
        known = self._failures.pop(address, None)
        count = known.count + 1 if known is not None and now - known.at < FORGOTTEN_AFTER_S else 1
        self._failures[address] = _Failures(count, now)
        if len(self._failures) > FAILING_ADDRESSES_MAX:
            self._failures.popitem(last=False)
        return min(DELAY_S_MAX, DELAY_S_FIRST * 2.0 ** min(count - 1, 16))

    @property
    def failing(self) -> int:
        """Addresses whose failed logins are remembered."""
        return len(self._failures)


def group_of(host: str) -> str:
    """What counts as one address: an IPv4 address, an IPv6 network of 64 bits, since a host can take any in it.

    Empty for a Unix socket, whose clients have none.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False).network_address)
    return str(address)
