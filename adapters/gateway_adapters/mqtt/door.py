"""The door of a listener: who comes in, as whom, and what they may publish. Everything about it in one place.

    admission   sockets: how many, how fast, from where
    users       passwords
    tls         certificates
    access      what a user may publish

A wrong password is answered with 0x86 (MQTT 3.1.1: 4), everything else that forbids a client to connect with 0x87 (5).
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from gateway_native.mqtt import RemoteFault, Routes

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

    @property
    def allow(self) -> Routes | None:
        """The rules as the parser takes them."""
        return None if self.rules is None else compile_rules(self.rules)


@functools.lru_cache(maxsize=1_024)  # clients with the same rules share them
def compile_rules(rules: tuple[Rule, ...]) -> Routes:
    """Routes that lead nowhere; what would drop a message forbids it."""
    return Routes([(rule.topic_filter.encode(), 0, None, not rule.allowed) for rule in rules])


def allows(rules: tuple[Rule, ...], topic: str) -> bool:
    """May a client with these rules publish there?"""
    index = compile_rules(rules).find(topic.encode())
    return index is not None and rules[index].allowed


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

    def takes_time(self, connect: Connect, ssl_object: object | None) -> bool:
        """May `check` have to wait for a password's hash, or to refuse? Else `admit` decides at once."""
        ruled = self._access is not None and connect.will is not None
        return ruled or self._asks_password(connect, ssl_object) or not self._may_come(ssl_object)

    def admit(self, client_id: str, host: str, ssl_object: object | None) -> Guest:
        """May this client, of whom no password is asked, connect, and as whom? Raises LoginRefused.

        client_id: as it will be, where one was assigned. host: the peer's address, empty for a Unix socket.
        ssl_object: of a TLS connection, whose handshake has verified the client's certificate if it showed one.
        """
        if not self._may_come(ssl_object):
            delay_s = self.admission.failed(host)
            raise LoginRefused(Reason.NOT_AUTHORIZED, "the client proves by nothing who it is", delay_s)
        return self._guest(self._certified(ssl_object), client_id)

    async def check(self, connect: Connect, client_id: str, host: str, ssl_object: object | None) -> Guest:
        """The same, also for those of whom a password is asked. Raises RemoteFault; a LoginRefused is to be delayed."""
        guest = await self._identify(connect, client_id, host, ssl_object)
        if connect.will is not None and guest.rules is not None and not allows(guest.rules, connect.will.topic):
            raise RemoteFault(Reason.NOT_AUTHORIZED, "the client may not publish to the topic of its will")
        return guest

    async def _identify(self, connect: Connect, client_id: str, host: str, ssl_object: object | None) -> Guest:
        if self._users is None or connect.username is None or not self._asks_password(connect, ssl_object):
            return self.admit(client_id, host, ssl_object)
        try:
            right = await self._users.verify(connect.username, connect.password or b"")
        except TooBusy:
            raise RemoteFault(Reason.SERVER_UNAVAILABLE, "too many clients log in at once") from None
        if not right:
            raise LoginRefused(Reason.BAD_CREDENTIALS, "wrong user name or password", self.admission.failed(host))
        return self._guest(connect.username, client_id)

    def _asks_password(self, connect: Connect, ssl_object: object | None) -> bool:
        return self._users is not None and connect.username is not None and self._certified(ssl_object) is None

    def _may_come(self, ssl_object: object | None) -> bool:
        """Without a password: by a certificate, whose name may not count, or because nobody has to prove anything."""
        shown = self._users is None and self._config.client_certificates == "require" and ssl_object is not None
        return shown or self._config.allow_anonymous or self._certified(ssl_object) is not None

    def _certified(self, ssl_object: object | None) -> str | None:
        """The user that the client's certificate names, where that counts."""
        return identity(ssl_object) if ssl_object is not None and self._config.use_identity_as_username else None

    def _guest(self, user: str | None, client_id: str) -> Guest:
        return Guest(user, self._access.rules(user, client_id) if self._access is not None else None)
