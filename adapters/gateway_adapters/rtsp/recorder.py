"""Puts the access units of one camera into the ring, and gives up whole groups of pictures when there is no room."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway_native.batch import encode_headers
from gateway_native.ring import KEYFRAME, Ring

from gateway.clock import NS_PER_MS
from gateway_adapters.rtsp.access_units import AccessUnit


class Recorder:
    """One camera's way into its stream; used by one thread at a time.

    What finds no room, or is larger than a record may be, is lost, and so is everything up to the next key frame, since
    it could not be decoded. Losses are counted, told to `on_loss` for a gap record, and the next record says in its
    header `lost` how many went before it. What a full disk refuses was in the ring already: the writer counts it, and
    it is noticed here with the next access unit.
    """

    def __init__(
        self,
        camera: str,
        codec: str,
        *,
        ring: Ring,
        partition: int,
        record_bytes_max: int,
        logger: logging.Logger,
        on_loss: Callable[[AccessUnit], None] = lambda unit: None,
        refused: Callable[[], int] = lambda: 0,
    ) -> None:
        """refused: how many records of the stream a full disk has refused so far."""
        self._camera = camera
        self._key = camera.encode()
        self.codec = codec
        self._ring = ring
        self._partition = partition
        self._record_bytes_max = min(record_bytes_max, ring.largest_record)
        self._logger = logger
        self._run = 0
        self._lost = 0
        self._until_key = False
        self._on_loss = on_loss
        self._refused = refused
        self._refused_seen = refused()
        self.records = 0
        self.bytes = 0
        self.keyframes = 0
        self.lost_access_units = 0
        self.refused = 0
        self.oversized = 0
        self.last_unit_ns = 0  # receive time of the newest record, ns since 1970

    @property
    def run(self) -> int:
        """The run that records belong to now."""
        return self._run

    def begin_run(self, received_ns: int) -> int:
        """A new run: its id is the time of its first access unit in ms, made larger where needed so that ids grow."""
        self._run = max(received_ns // NS_PER_MS, self._run + 1)
        return self._run

    def put(self, unit: AccessUnit) -> bool:
        """Record one access unit; false when it is lost."""
        self._look_for_refused()
        if self._until_key and not unit.key:
            self._lose(unit)
            return False
        headers = self._headers(unit)
        if len(self._key) + len(unit.value) + len(headers) > self._record_bytes_max:
            self.oversized += 1
            self._lose(unit)
            self._logger.warning(
                "access unit too large, lost with what depends on it",
                extra={
                    "fields": {
                        "camera": self._camera,
                        "bytes": len(unit.value),
                        "largest_record": self._record_bytes_max,
                        "oversized": self.oversized,
                    }
                },
            )
            return False
        flags = KEYFRAME if unit.key else 0
        if not self._ring.append(self._partition, self._key, unit.value, headers, unit.received_ns, flags):
            if not self._until_key:
                self._logger.warning(
                    "no room, dropping to the next key frame",
                    extra={"fields": {"camera": self._camera, "lost_access_units": self.lost_access_units + 1}},
                )
            self._lose(unit)
            return False
        self._until_key = False
        self._lost = 0
        self.records += 1
        self.bytes += len(unit.value)
        self.keyframes += unit.key
        self.last_unit_ns = unit.received_ns
        return True

    def _lose(self, unit: AccessUnit) -> None:
        self._until_key = True
        self._lost += 1
        self.lost_access_units += 1
        self._on_loss(unit)

    def _look_for_refused(self) -> None:
        """What was refused since the last access unit cannot be decoded upon."""
        refused = self._refused()
        if refused > self._refused_seen:
            self._until_key = True
            self._lost += refused - self._refused_seen
            self.refused += refused - self._refused_seen
            self._refused_seen = refused

    def _headers(self, unit: AccessUnit) -> bytes:
        headers = [("codec", self.codec.encode())]
        if unit.key:
            headers.append(("keyframe", b"1"))
        if unit.ticks is not None:
            headers.append(("pts", b"%d" % unit.ticks))
        headers.append(("run", b"%d" % self._run))
        if unit.source_time_ns is not None:
            headers.append(("source_time", b"%d" % unit.source_time_ns))
        if self._lost:
            headers.append(("lost", b"%d" % self._lost))
        return encode_headers(headers)
