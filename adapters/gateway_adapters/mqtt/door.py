"""The door of a listener: who comes in, as whom, and what they may publish. Everything about it in one place.

    admission   sockets: how many, how fast, from where
    users       passwords
    tls         certificates
    access      what a user may publish

A wrong password is answered with 0x86 (MQTT 3.1.1: 4), everything else that forbids a client to connect with 0x87 (5).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from gateway_native.mqtt import RemoteFault

from gateway.config import ListenerConfig
from gateway_adapters.mqtt.access import Access, Rule
from gateway_adapters.mqtt.admission import Admission
from gateway_adapters.mqtt.protocol import Connect, Reason
from gateway_adapters.mqtt.tls import identity, server_context
from gateway_adapters.mqtt.users import TooBusy, Users


@dataclass(frozen=True)
class Guest:
    """A client that may connect. ``user`` is proved (None: anonymous); ``rules`` None: it may publish everything."""

    user: str | None
    rules: tuple[Rule, ...] | None


class LoginRefused(RemoteFault):
    """``delay_s``: so long the answer is held back, so that guessing takes time."""

    def __init__(self, reason: int, cause: str, delay_s: float) -> None:
        super().__init__(reason, cause)
        self.delay_s = delay_s


class Door:
    """Made of a listener's configuration; raises ConfigError when one of its files cannot be used."""

    def __init__(self, config: ListenerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self.tls: ssl.SSLContext | None = server_context(config) if config.tls else None
        self._access = Access.load(config.access_file) if config.access_file is not None else None
        self._users = Users.load(config.users_file) if config.users_file is not None else None
        self.admission = Admission(
            per_address_max=config.connections_per_address_max, rate=config.connect_rate, clock=clock
        )

    def reload(self) -> None:
        """Read all files again: for connections to come. After a ConfigError everything is as it was."""
        config = self._config
        tls = server_context(config) if config.tls else None
        access = Access.load(config.access_file) if config.access_file is not None else None
        if self._users is not None:
            self._users.reload()
        self.tls, self._access = tls, access

    def close(self) -> None:
        """End the threads that check passwords."""
        if self._users is not None:
            self._users.close()

    async def check(self, connect: Connect, client_id: str, host: str, ssl_object: object | None) -> Guest:
        """May this client connect, and as whom? Raises RemoteFault; a LoginRefused is answered after its delay.

        client_id: as it will be, where one was assigned. host: the peer's address, empty for a Unix socket.
        ssl_object: of a TLS connection, whose handshake has verified the client's certificate if it showed one.
        """
        user = await self._user(connect, host, ssl_object)
        rules = self._access.rules(user, client_id) if self._access is not None else None
        return Guest(user, rules)

    async def _user(self, connect: Connect, host: str, ssl_object: object | None) -> str | None:
        name = identity(ssl_object) if ssl_object is not None else None
        if name is not None and self._config.use_identity_as_username:
            return name
        if self._users is not None and connect.username is not None:
            return await self._login(self._users, connect.username, connect.password or b"", host)
        if self._users is None and self._config.client_certificates == "require" and ssl_object is not None:
            return None  # let in by its certificate; the name it gives itself proves nothing
        if self._config.allow_anonymous:
            return None
        raise LoginRefused(Reason.NOT_AUTHORIZED, "the client proves by nothing who it is", self.admission.failed(host))

    async def _login(self, users: Users, name: str, password: bytes, host: str) -> str:
        try:
            right = await users.verify(name, password)
        except TooBusy:
            raise RemoteFault(Reason.SERVER_UNAVAILABLE, "too many clients log in at once") from None
        if right:
            return name
        delay_s = self.admission.failed(host)
        raise LoginRefused(Reason.BAD_CREDENTIALS, "wrong user name or password", delay_s)
