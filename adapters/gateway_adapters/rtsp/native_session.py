"""From a camera's URL to a socket on which pictures come: name, connection, handshake, redirects. On the event loop.

Sockets are our own, not a transport's: once the camera plays, the socket goes to the camera thread as it is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gateway.config import CameraConfig
from gateway_adapters.rtsp.authentication import Authenticator
from gateway_adapters.rtsp.failures import Failure, of_system, shown
from gateway_adapters.rtsp.handshakes import Handshakes
from gateway_adapters.rtsp.protocol import Client, Redirected

PORT = 554
REDIRECTS_MAX = 5
# Of one name; more are never tried.
ADDRESSES_MAX = 8
_RECEIVE_BYTES = 65_536

# A name that was looked up before is looked up again for so long; then what it stood for then is tried.
LOOK_UP_S = 2.0
# Names that are remembered; redirects could lead to any number.
NAMES_MAX = 10_000
# Of threads that look names up. Theirs alone: with the name server away they are all busy, and the rest of the gateway
# has other work for its own.
LOOK_UPS_MAX = 8


class Names:
    """What cameras' names stood for the last time: a name server that is away does not keep known cameras away."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """What is being looked up is not waited for."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def look_up(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """As getaddrinfo. Raises Failure. An address is not looked up, so that it waits for no other camera's name."""
        try:
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        except (OSError, UnicodeError):
            known = self._known.get((host, port))
        try:
            async with asyncio.timeout(LOOK_UP_S if known else None):
                found = await self._ask(host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if known:
                return known
            reason = getattr(error, "strerror", None) or "not a name"
            raise Failure("unreachable", f"the host cannot be found ({reason})") from None
        self._known.pop((host, port), None)
        self._known[host, port] = list(found)
        if len(self._known) > NAMES_MAX:
            del self._known[next(iter(self._known))]  # the one that was looked up longest ago
        return list(found)

    async def _ask(self, host: str, port: int) -> list[tuple[Any, ...]]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(LOOK_UPS_MAX, thread_name_prefix="gateway-names")
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return list(await asyncio.get_running_loop().run_in_executor(self._threads, ask))


@dataclass(frozen=True)
class Credentials:
    """Whom a camera is to let in. None: nobody in particular."""

    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"

    @classmethod
    def of(cls, config: CameraConfig) -> Credentials:
        """A configured camera's."""
        password = config.password.get_secret_value() if config.password is not None else None
        return cls(config.username, password)


@dataclass
class Connected:
    """A camera that answered everything it was asked. rest: bytes behind its last answer."""

    socket: socket.socket
    client: Client
    url: str
    rest: bytes = b""


async def connect(
    url: str,
    credentials: Credentials,
    timeout_s: float,
    *,
    describe_only: bool = False,
    names: Names | None = None,
    handshakes: Handshakes | None = None,
    on_redirect: Callable[[str], None] = lambda url: None,
    on_client: Callable[[Client], None] = lambda client: None,
) -> Connected:
    """Connect and have the camera play, or only describe itself. Raises Failure. The socket is the caller's then.

    timeout_s: for all of it but waiting for one of the handshakes' places. A redirect is followed, without the
    credentials if it leads to another host. on_client: is given each connection's client before it asks anything.
    """
    home = urlsplit(url).hostname
    own = Names()  # without a thread until it is asked
    progress = _Progress(on_client, names or own, handshakes or Handshakes())
    try:
        async with asyncio.timeout(timeout_s) as limit:
            for _ in range(REDIRECTS_MAX + 1):
                here = urlsplit(url).hostname == home
                try:
                    return await _connect(
                        url, credentials if here else Credentials(), progress, limit, describe_only=describe_only
                    )
                except Redirected as elsewhere:
                    url = elsewhere.url
                    on_redirect(url)
                except Failure as failure:
                    if failure.state == "unauthorized" and not here:
                        raise Failure(
                            "unauthorized",
                            f"it redirects to {shown(url)}, another host, which gets no password from here; "
                            "configure that address",
                        ) from None
                    raise
    except TimeoutError:
        raise Failure("timeout", f"{progress.waits_for} within {timeout_s:g} s") from None
    finally:
        own.close()
    raise Failure("unsupported", f"the camera redirects over {REDIRECTS_MAX} times")


@dataclass
class _Progress:
    """One camera's way there: what is waited for, should it never come."""

    on_client: Callable[[Client], None]
    names: Names
    handshakes: Handshakes
    client: Client | None = None

    @property
    def waits_for(self) -> str:
        if self.client is None:
            return "no connection"
        return f"no answer to {self.client.waits_for or 'anything'}"


async def _connect(
    url: str, credentials: Credentials, progress: _Progress, limit: asyncio.Timeout, *, describe_only: bool
) -> Connected:
    parts = urlsplit(url)
    progress.client = None
    connection = await _open(parts.hostname or "", parts.port or PORT, progress.names)
    try:
        authenticator = Authenticator(credentials.username, credentials.password)
        client = progress.client = Client(url, authenticator, describe_only=describe_only)
        async with progress.handshakes.place(limit):
            progress.on_client(client)
            await _converse(connection, client)
    except BaseException:
        connection.close()
        raise
    return Connected(connection, client, url, client.take_rest())


async def _converse(connection: socket.socket, client: Client) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connection, client.begin())
        while not client.done:
            data = await loop.sock_recv(connection, _RECEIVE_BYTES)
            if not data:
                raise Failure("closed", f"the camera closed the connection instead of answering {client.waits_for}")
            if answer := client.receive(data):
                await loop.sock_sendall(connection, answer)
    except OSError as error:
        raise of_system(error.errno, error.strerror) from None


async def _open(host: str, port: int, names: Names) -> socket.socket:
    """A TCP connection to the first address that takes it. Raises Failure, the last address's."""
    loop = asyncio.get_running_loop()
    failure = Failure("unreachable", "the host cannot be found")
    for family, kind, protocol, _, address in (await names.look_up(host, port))[:ADDRESSES_MAX]:
        try:
            connection = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise of_system(error.errno, error.strerror) from None
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(connection, address)
            return connection
        except OSError as error:
            connection.close()
            failure = of_system(error.errno, error.strerror)
        except BaseException:
            connection.close()
            raise
    raise failure
