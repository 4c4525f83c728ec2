"""What a camera's state is called, what its failures say in the log, and when it is tried again. For both engines."""

from __future__ import annotations

import logging

from gateway.backoff import Backoff
from gateway_adapters.rtsp.failures import Failure

# A camera that was recorded a moment ago most likely restarts: it is tried often for so long.
RETURNING_S = 60.0
RETURNING_WAIT_S_MAX = 4.0
# Its pictures arrive, but packets of them were missing within this time.
LOSSY_S = 60.0


class Health:
    """One camera's. Times are those of a monotonic clock, in seconds.

    state: connecting, recording, lossy (recording, but packets were missing within the last minute), stalled
    (connected, but no picture comes), stopped; or why it is not recording: unauthorized, not_found, refused,
    unreachable, timeout, closed, unsupported, failed.
    """

    def __init__(self, name: str, logger: logging.Logger, backoff: Backoff) -> None:
        self._name = name
        self._logger = logger
        self._backoff = backoff
        self._state = "stopped"
        self._lossy_until = 0.0
        self._recorded_at: float | None = None
        self._alike = 0
        self.last_error = ""
        self.reconnects = 0

    def state(self, now: float) -> str:
        """For `statistics`."""
        return "lossy" if self._state == "recording" and now < self._lossy_until else self._state

    def connecting(self) -> None:
        self._state = "connecting"

    def stopped(self) -> None:
        self._state = "stopped"

    def stalled(self) -> None:
        self._state = "stalled"

    def recording(self, **fields: object) -> None:
        """Its first picture came; fields: for the log."""
        self._state = "recording"
        self._alike = 0
        self._logger.info("camera is recording", extra=self.fields(**fields))

    def resumed(self) -> None:
        """Pictures come again on the same connection."""
        self._state = "recording"

    def lost_packets(self, now: float) -> None:
        self._lossy_until = now + LOSSY_S

    def failed(self, failure: Failure, *, now: float, run_s: float, recorded: bool) -> float:
        """A connection ended after run_s, or was never made. Seconds until the next.

        One line for the first of equal failures, then for the 2nd, 4th, 8th…, with their number.
        """
        self._state = failure.state
        if recorded:
            self._recorded_at = now
        self.reconnects += 1
        wait_s = self._backoff.after(run_s if recorded else 0.0)
        if self._recorded_at is not None and now - self._recorded_at < RETURNING_S:
            wait_s = min(wait_s, RETURNING_WAIT_S_MAX)
        alike = not recorded and failure.cause == self.last_error
        self._alike = self._alike + 1 if alike else 1
        self.last_error = failure.cause
        if not self._alike & (self._alike - 1):
            self._say(failure, wait_s)
        return wait_s

    def _say(self, failure: Failure, wait_s: float) -> None:
        fields: dict[str, object] = {"state": failure.state, "cause": failure.cause, "retry_s": round(wait_s, 1)}
        if self._alike > 1:
            fields["times"] = self._alike
        self._logger.warning("camera cannot be recorded, trying again", extra=self.fields(**fields))

    def fields(self, **fields: object) -> dict[str, dict[str, object]]:
        """A log line's."""
        return {"fields": {"camera": self._name, **fields}}
