"""All cameras of the native engine on one thread, without the interpreter: from their sockets into the ring.

Python connects, authenticates and says PLAY; then it hands the socket over with `add`, and hears of the camera through
`events`: what its connection says besides pictures, and what became of it. Records are those of gateway/log/FORMAT.md.
"""

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final, Self

from gateway_native.ring import Ring

# -- kinds of events, and what number and data are

CLOSED: Final[int]
"""The connection is over and its socket closed; the handle means nothing any more. number: one of ENDED_*; data: for
ENDED_SOCKET b"<errno>", for ENDED_FAULT b"<rtp.FAULT_*>"."""
TEXT: Final[int]
"""An RTSP message between frames: a reply to what `send` sent, or a request of the camera's. data: all of it."""
RUN: Final[int]
"""A run began. number: its id. The first one says that the camera is recording."""
PICTURE: Final[int]
"""The parameter sets changed, or an image's size; also at the first picture. data: the newest sequence parameter set,
whose size `gateway.nal.picture_size` reads; b"" for JPEG, where number is width << 32 | height."""
STALLED: Final[int]
"""No access unit in max(5 s, 10 frame intervals). number: ms since the last one, or since `add`. Said once a stall."""
RESUMED: Final[int]
"""Access units come again after STALLED."""
LOST: Final[int]
"""Something is missing in the stream; at most one a second, camera and reason. number: LOST_*; data: see LOSS."""
GOODBYE: Final[int]
"""The camera sent an RTCP BYE: the run is over. The connection stays until somebody closes it."""

ENDED_REMOVED: Final[int]
"""`remove` did it."""
ENDED_PEER: Final[int]
"""The camera closed the connection."""
ENDED_SOCKET: Final[int]
"""The socket failed."""
ENDED_FAULT: Final[int]
"""The camera sent what cannot be understood."""
ENDED_DEAF: Final[int]
"""The camera does not read what is sent to it."""
ENDED_CHATTER: Final[int]
"""The camera sent more RTSP messages than can have a purpose."""
ENDED: Final[dict[int, str]]
"""What a log line says of each of these."""

LOST_PACKETS: Final[int]
"""RTP packets, by their sequence numbers. Gap reason "packet-loss"; count: packets, bytes: 0."""
LOST_ROOM: Final[int]
"""Access units that found no room in the ring or in memory, and those up to the next key frame. "overload"."""
LOST_OVERSIZED: Final[int]
"""Access units larger than a record may be, and those up to the next key frame. "overload"."""
LOSS: Final[Struct]
"""(count, bytes, first_ns, last_ns) = LOSS.unpack(data); times are receive times, ns since 1970."""

class Camera:
    """One configured camera: where its records go, and what must outlive its connections (runs, losses, counters).

    key: the records' key, the camera's name. It may be added again once its connection's CLOSED was taken.
    """

    def __new__(cls, key: bytes, ring: Ring, partition: int, *, record_bytes_max: int = ...) -> Self: ...
    @property
    def key(self) -> bytes: ...
    @property
    def run(self) -> int:
        """The run that records belong to now; 0 before the first."""

    @property
    def statistics(self) -> dict[str, Any]:
        """Counters since this object was made, any time, from any thread.

        units, keyframes, bytes (of values recorded); packets, packet_bytes, lost_packets, duplicate_packets,
        late_packets, other_packets (of payload types, channels and SSRCs that are not the camera's, or no RTP at all),
        unsupported_packets (payload structures that are not read), damaged_units, lost_units (no room, oversized, or
        nothing left of them), oversized, refused (by a full disk), skipped_before_key, clock_jumps, ssrc_changes,
        restarts (of sequence numbers), parameter_changes, goodbyes, reports (sender reports read), wrong_markers (runs
        in which a picture went on behind one).

        last_unit_ns and last_key_ns (receive time, 0: none); and of the last seconds: fps, bits_per_second, jitter_ns
        (RFC 3550 §6.4.1, taken once a time stamp).
        """

class CameraThread:
    """The thread's state. `run` becomes the thread; every other call belongs to the event loop's, and none waits.

    ring: nobody else may put anything into it while the thread runs.
    """

    def __new__(cls, ring: Ring, *, cameras_max: int = 4096, memory_bytes_max: int = ...) -> Self:
        """memory_bytes_max: of access units being put together, all cameras'. What exceeds it is LOST_ROOM."""

    def run(self) -> None:
        """The thread's body: returns after `stop`. The GIL is not held."""

    def stop(self) -> None:
        """End the thread after its turn. Connections that are left are closed with this object."""

    def add(
        self,
        fd: int,
        camera: Camera,
        *,
        codec: str,
        rtp_channel: int = 0,
        rtcp_channel: int = 1,
        payload_type: int = -1,
        parameter_sets: Iterable[bytes] = (),
        jpeg_size: tuple[int, int] = (0, 0),
        received: bytes = b"",
    ) -> int:
        """Take a connection over after PLAY was sent; its handle. Arguments as `rtp.Receiver`.

        fd: a connected socket; it becomes the thread's, which closes it (pass a duplicate of one that asyncio holds).
        received: what was read from it beyond the last reply that Python wants; the reply to PLAY may be in it, and
        then comes as TEXT. Raises ValueError for arguments that cannot be, a camera that has a connection, or one too
        many; the descriptor is then still the caller's.
        """

    def send(self, handle: int, data: bytes) -> None:
        """An RTSP message, whole, between receiver reports. Nothing happens if the connection is gone."""

    def remove(self, handle: int, last: bytes = b"") -> None:
        """Say this (TEARDOWN) as far as the socket takes it, and close. CLOSED follows; then all that will ever come is
        in the ring: what the thread had not read yet is not taken. Nothing happens if the connection is gone."""

    @property
    def event_fd(self) -> int:
        """Readable when there are events."""

    def events(self) -> list[tuple[int, int, int, bytes]]:
        """(kind, handle, number, data) of what happened since the last call, oldest first."""

    @property
    def settled(self) -> bool:
        """Has the thread taken every command?"""

    @property
    def counters(self) -> dict[str, int]:
        """connections, turns, ticks_slept, memory_bytes (of access units being put together), memory_bytes_peak,
        texts_dropped (nobody took events)."""
