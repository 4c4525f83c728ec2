"""How long a source waits before it connects again."""

from __future__ import annotations

import random

from gateway.clock import NS_PER_S

# A connection that held this long (and as long as the last wait) shows that the peer is well: waits start over short.
GOOD_RUN_S = 10.0


class Backoff:
    """Exponential waits from `first_ns` to `most_ns`, each shortened by up to half at random.

    The jitter keeps a thousand sources that lost the same switch from coming back in the same instant.
    """

    def __init__(self, first_ns: int, most_ns: int, randomness: random.Random | None = None) -> None:
        self._first_s = first_ns / NS_PER_S
        self._most_s = max(most_ns, first_ns) / NS_PER_S
        self._random = randomness or random.Random()
        self._next_s = self._first_s

    def after(self, run_s: float) -> float:
        """Seconds to wait after a connection that held for `run_s` seconds; 0 for one that was never made."""
        if run_s >= max(GOOD_RUN_S, self._next_s):
            self._next_s = self._first_s
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self._most_s)
        return wait_s * self._random.uniform(0.5, 1.0)
