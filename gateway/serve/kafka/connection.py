"""One client's connection: requests in, one after the other, responses out in the same order, all within limits."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, cast

from gateway.kafka import wire
from gateway.serve.kafka.fetch import Piece, close
from gateway.serve.kafka.slices import Slice
from gateway.serve.kafka.waiting import Disk

# Requests that have arrived and wait for their turn. A client that sends more is read on later.
REQUESTS_WAITING_MAX, REQUESTS_WAITING_BYTES_MAX = 16, 128 * 2**10
# Larger ones need room that all clients share: see `Host.reserve`. So who only reads never waits for those who write.
SMALL_REQUEST_BYTES = 64 * 2**10
# As long as nobody knows who it is. Kafka's own limit for the requests of SASL, too.
FIRST_REQUESTS_BYTES_MAX = 512 * 2**10
# Responses that are due while the next request is looked at already: those of Produce wait for the disk.
RESPONSES_WAITING_MAX = 8
# Below this a copy costs less than another system call and another packet.
SENDFILE_BYTES_MIN = 64 * 2**10
# TLS needs the bytes in memory: so many at a time.
READ_BYTES = 256 * 2**10
# After this many bytes in the socket's own queue, a response waits until the client has taken some.
WRITE_BYTES_MAX = 128 * 2**10


# None: the client wants no answer.
Pieces = Sequence[Piece] | None
Response = Pieces | Awaitable[Pieces]


class Limits(Protocol):
    """What a connection may take; see `[kafka]` in the configuration."""

    @property
    def request_bytes_max(self) -> int: ...
    @property
    def idle_timeout_s(self) -> float: ...
    @property
    def transfer_timeout_s(self) -> float: ...


class Host(Protocol):
    """What a connection needs of the server."""

    @property
    def limits(self) -> Limits: ...
    @property
    def disk(self) -> Disk: ...

    def admit(self, connection: Connection) -> bool: ...
    def forget(self, connection: Connection) -> None: ...
    def reserve(self, connection: Connection, size: int) -> bool: ...
    def release(self, size: int) -> None: ...
    def count(self, name: str, amount: int = 1) -> None: ...
    def say(self, level: int, event: str, **fields: object) -> None: ...
    def requests(self, connection: Connection) -> Callable[[bytes], Awaitable[Response]]: ...


class Connection(asyncio.Protocol):
    """From accept to close. Closed for what the peer does wrong, with one line in the log that says what."""

    def __init__(self, host: Host, accepted: socket.socket) -> None:
        self._host = host
        self._socket = accepted  # the transport's
        self._limits = host.limits
        self._buffer = bytearray()
        self._frames: deque[tuple[bytes, int]] = deque()  # and what was reserved for each
        self._frames_bytes = 0
        self._reserved = 0  # for the request that is being received
        self._waits_for_room = False
        self._cutting_off: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.peer = ""
        self.local: tuple[str, int] = ("", 0)
        """The address at which it came."""
        self.tls = False
        self.client_id = ""
        self.user = ""
        self.authenticated = False
        """Whether who it is has been proved; see `requests` for what may be asked before."""
        self._busy = 0  # requests that are being answered

    # -- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername") or ("", 0)
        self.peer = f"{address[0]}:{address[1]}"
        self.local = (transport.get_extra_info("sockname") or ("", 0))[:2]
        self.tls = transport.get_extra_info("ssl_object") is not None
        if not self._host.admit(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"kafka-{self.peer}")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take_frames()

    def eof_received(self) -> bool:
        return False  # nobody is left who could take a response

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._writable.set()
        if self._task is not None and not self._task.done():
            self._task.cancel()
        if self._cutting_off is not None:
            self._cutting_off.cancel()
        self._host.release(self._reserved + sum(reserved for _, reserved in self._frames))
        self._frames.clear()
        self._reserved = 0
        self._host.forget(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- requests

    def _take_frames(self) -> None:
        """Whole requests out of what has arrived; more is read when there is room for it."""
        position = 0
        self._waits_for_room = False
        while len(self._buffer) - position >= 4 and not self._has_enough:
            size = int.from_bytes(self._buffer[position : position + 4], "big", signed=True)
            if not self._may_come(size):
                return
            if self._waits_for_room or len(self._buffer) - position - 4 < size:
                break
            self._frames.append((bytes(self._buffer[position + 4 : position + 4 + size]), self._reserved))
            self._frames_bytes += size
            self._reserved = 0
            position += 4 + size
        del self._buffer[:position]
        if self._frames:
            self._arrived.set()
        self._watch_time()
        self._update_reading()

    def _may_come(self, size: int) -> bool:
        """A request of this size is announced. False: it is not allowed, and the connection is closed."""
        allowed = self._limits.request_bytes_max if self.authenticated else FIRST_REQUESTS_BYTES_MAX
        if not 0 < size <= allowed:
            self.fail(f"announces a request of {size} bytes; {allowed} are allowed")
            return False
        if size > SMALL_REQUEST_BYTES and not self._reserved:
            self._waits_for_room = not self._host.reserve(self, size)
            self._reserved = 0 if self._waits_for_room else size
        return True

    def room(self) -> None:
        """There may be room for the request that waits for it."""
        if not self._closing:
            self._take_frames()

    @property
    def _has_enough(self) -> bool:
        return len(self._frames) >= REQUESTS_WAITING_MAX or self._frames_bytes >= REQUESTS_WAITING_BYTES_MAX

    def _watch_time(self) -> None:
        """A request whose beginning is there has to come to its end in time."""
        is_coming = bool(self._buffer) and not self._waits_for_room and not self._has_enough
        if is_coming and self._cutting_off is None:
            loop = asyncio.get_running_loop()
            self._cutting_off = loop.call_later(self._limits.transfer_timeout_s, self._cut_off)
        elif not is_coming and self._cutting_off is not None:
            self._cutting_off.cancel()
            self._cutting_off = None

    def _cut_off(self) -> None:
        self._host.count("timeouts")
        self._end(logging.INFO, "it began a request and did not end it in time")

    def _update_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._has_enough or self._waits_for_room:
            transport.pause_reading()
        else:
            transport.resume_reading()

    async def _serve(self) -> None:
        """Take requests one after the other, while another task sends their responses."""
        responses: asyncio.Queue[Response] = asyncio.Queue(RESPONSES_WAITING_MAX)
        sending = asyncio.get_running_loop().create_task(self._guarded(self._send_all(responses)))
        try:
            await self._guarded(self._take_all(responses))
        finally:
            sending.cancel()
            try:
                await asyncio.wait([sending])
            finally:  # that the connection is lost meanwhile cancels this once more
                while not responses.empty():
                    _drop(responses.get_nowait())

    async def _take_all(self, responses: asyncio.Queue[Response]) -> None:
        answer = self._host.requests(self)
        while not self._closing:
            frame, reserved = await self._next()
            self._busy += 1
            try:
                response = await answer(frame)
            finally:
                del frame
                self._host.release(reserved)
            if self._busy == 1 and not isinstance(response, Awaitable):  # nothing is before it
                await self._deliver(response)
                continue
            try:
                await responses.put(response)
            except asyncio.CancelledError:
                _drop(response)
                raise
        await responses.join()
        self._close()

    async def _send_all(self, responses: asyncio.Queue[Response]) -> None:
        while True:
            response = await responses.get()
            pieces = await response if isinstance(response, Awaitable) else response
            await self._deliver(pieces)
            responses.task_done()

    async def _deliver(self, pieces: Pieces) -> None:
        """The answer to the oldest request that has none."""
        if pieces is not None:
            await self._send(pieces)
        self._busy -= 1
        if self._closing and not self._busy:
            self._close()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever ends it ends the connection, with one line in the log."""
        try:
            await work
        except wire.ProtocolError as error:
            self.fail(str(error))
        except TimeoutError as error:
            self._host.count("timeouts")
            self._end(logging.INFO, str(error))
        except OSError as error:
            self._end(logging.WARNING, f"the response could not be sent: {error.strerror or error}")
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:
            self._host.count("faults")
            logging.getLogger("gateway.kafka").exception("a request could not be answered, which is a fault of ours")
            self.abort()

    async def _next(self) -> tuple[bytes, int]:
        """The next request, and what is reserved for it. Raises TimeoutError when none comes for too long."""
        if not self._frames:
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                raise TimeoutError("it was silent, or a request was cut short, for too long") from None
        frame, reserved = self._frames.popleft()
        self._frames_bytes -= len(frame)
        self._take_frames()
        return frame, reserved

    def fail(self, cause: str) -> None:
        """Close, because the peer is at fault."""
        self._host.count("protocol_errors")
        self._end(logging.WARNING, cause)

    def _end(self, level: int, cause: str) -> None:
        if not self._closing:
            self._host.say(level, "connection closed", peer=self.peer, client=self.client_id, cause=cause)
        self.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def shut(self) -> None:
        """Close when what is being sent has left; at once if nothing is."""
        self._closing = True
        if not self._busy:
            self.abort()

    # -- responses

    async def _send(self, pieces: Sequence[Piece]) -> None:
        """Raises TimeoutError when the client does not take it in time. The files of the pieces are closed."""
        started = time.monotonic()
        try:
            rest = self._send_at_once(await self._small_ones_read(pieces))
            if not rest:
                return
            async with asyncio.timeout(self._limits.transfer_timeout_s):
                for piece in rest:
                    await self._send_piece(piece)
                await self._writable.wait()
        except TimeoutError:
            waited_s = time.monotonic() - started
            self._host.count("slow_clients")
            raise TimeoutError(f"it did not take a response within {waited_s:.0f} s") from None
        finally:
            close(piece for piece in pieces if isinstance(piece, Slice))

    def _send_at_once(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """As much as the socket takes, which as a rule is all, past the transport, which is empty. What is left.

        What stands before the records leaves together with their beginning: the client is not woken for it alone.
        """
        if self.tls or self._open_transport().get_write_buffer_size():
            return pieces
        for number, piece in enumerate(pieces):
            length = piece.length if isinstance(piece, Slice) else len(piece)
            sent = self._send_some(piece, is_last=number == len(pieces) - 1)
            self._host.count("bytes_sent", sent)
            if sent < length:
                if not isinstance(piece, Slice):
                    return [piece[sent:], *pieces[number + 1 :]]
                return [piece._replace(position=piece.position + sent, length=length - sent), *pieces[number + 1 :]]
        return ()

    def _send_some(self, piece: Piece, *, is_last: bool) -> int:
        try:
            if not isinstance(piece, Slice):
                return self._socket.send(piece, 0 if is_last else socket.MSG_MORE)
            sent = os.sendfile(self._socket.fileno(), piece.file.fileno(), piece.position, piece.length)
            if is_last and sent == piece.length:
                self._push()
            return sent
        except BlockingIOError:
            return 0

    async def _small_ones_read(self, pieces: Sequence[Piece]) -> list[Piece]:
        """What is small goes together in one write, and one packet."""
        joined: list[Piece] = []
        text = bytearray()
        for piece in pieces:
            if isinstance(piece, Slice) and piece.length >= SENDFILE_BYTES_MIN:
                joined += [bytes(text), piece]
                text.clear()
            elif isinstance(piece, Slice):
                text += await self._host.disk.run(read_slice, piece, 0, piece.length)
            else:
                text += piece
        joined.append(bytes(text))
        return [piece for piece in joined if isinstance(piece, Slice) or piece]

    async def _send_piece(self, piece: Piece) -> None:
        transport = self._open_transport()
        if not isinstance(piece, Slice):
            transport.write(piece)
            self._host.count("bytes_sent", len(piece))
        elif self.tls:
            for start in range(0, piece.length, READ_BYTES):
                length = min(READ_BYTES, piece.length - start)
                transport.write(await self._host.disk.run(read_slice, piece, start, length))
                await self._writable.wait()
            self._host.count("bytes_sent", piece.length)
        else:
            await self._send_file(transport, piece)
            self._host.count("bytes_sent", piece.length)
        await self._writable.wait()

    def _push(self) -> None:
        """The last bytes of a sendfile may stay in the kernel, which expects more of them, for tens of milliseconds.

        Setting TCP_NODELAY, again, sends them (tcp(7)).
        """
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionAbortedError("the client closed the connection")
        return self._transport

    async def _send_file(self, transport: asyncio.Transport, piece: Slice) -> None:
        """From the page cache to the socket, by sendfile(2)."""
        loop = asyncio.get_running_loop()
        sent = await loop.sendfile(transport, piece.file, piece.position, piece.length, fallback=False)
        self._push()
        if sent != piece.length:
            raise OSError(f"the file ended after {sent} of {piece.length} bytes")


def _drop(response: Response) -> None:
    """It will not be sent."""
    if isinstance(response, Coroutine):
        response.close()
    elif not isinstance(response, Awaitable):
        close(piece for piece in response or () if isinstance(piece, Slice))


def read_slice(piece: Slice, start: int, length: int) -> bytes:
    """Bytes of a slice; on a thread that may wait for the disk. Raises OSError."""
    piece.file.seek(piece.position + start)
    data = b""
    while len(data) < length:
        more = piece.file.read(length - len(data))
        if not more:
            raise OSError(f"the file ended {length - len(data)} bytes before the records do")
        data += more
    return data
