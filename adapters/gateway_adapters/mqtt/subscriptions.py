"""What a subscriber asks a broker for, and what it remembers of what the broker's session has.

A lasting session lives at the broker and knows its subscriptions; asking for them again makes MQTT 3.1.1 brokers repeat
their retained messages. So what was granted is remembered in a small file, and only differences are asked for. It is
trusted only if nothing can have happened that we do not know of: from before each CONNECT until the subscriptions are
settled it counts as unconfirmed, because the broker may have begun a new session of which we never heard.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config import SiteConfig, SubscriberConfig
from gateway.log.files import FILES, replace

# How long the broker keeps the session, and queues for it, while the gateway is away.
SESSION_EXPIRY_S = 7 * 86_400
# A broker that crashed may have an older state of the session. Mosquitto, for one, writes it every half hour.
BROKER_SAVES_S = 3_600
DIRECTORY = "mqtt-subscribers"


def client_id_of(name: str, config: SubscriberConfig, site: SiteConfig) -> str:
    """The client id: as configured, else made from site and source."""
    return config.client_id or f"gateway-{site.name}-{name}"


def wanted_filters(config: SubscriberConfig) -> dict[str, int]:
    """Filters with their QoS, in the order of the routes; of routes with the same filter the first decides."""
    wanted: dict[str, int] = {}
    for route in config.routes:
        wanted.setdefault(route.filter, route.qos)
    return wanted


@dataclass(frozen=True)
class Subscription:
    """One filter that the broker's session has: the QoS asked for, and since when (seconds since 1970)."""

    qos: int
    since_s: float


@dataclass(frozen=True)
class Difference:
    """What to ask the broker for, so that its session has what is wanted."""

    subscribe: dict[str, int]
    unsubscribe: list[str]


class Subscriptions:
    """The subscriptions of one client id at one broker.

    Durable when `begin` and `confirm` return, if the disk takes it: if it does not, that is logged, and the next start
    of the gateway subscribes to everything. Both wait for the disk; call them in a thread.
    """

    def __init__(
        self,
        path: Path,
        broker: str,
        client_id: str,
        logger: logging.Logger,
        *,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """path: the file; its directory is made when it is needed. broker: host:port."""
        self._path = path
        self._about = {"broker": broker, "client_id": client_id}
        self._logger = logger
        self._clock_s = clock_s
        self._filters: dict[str, Subscription] = {}
        self._confirmed = self._known = False
        self._load()

    def begin(self) -> bool:
        """A CONNECT is about to be sent: until `confirm` or `restore` nobody knows what the broker's session has.

        Returns whether it was known so far: a session that the broker then calls present is the remembered one.
        """
        self._known = self._confirmed
        if self._confirmed:
            self._confirmed = False
            self._save()
        return self._known

    def restore(self) -> None:
        """The broker refused the CONNECT, so it did nothing to the session: what was known before still holds."""
        self._confirmed = self._known

    def difference(self, wanted: Mapping[str, int], *, present: bool, known: bool, repeatable: bool) -> Difference:
        """What to ask for. present: the broker has a session. known: it is the remembered one, as `begin` said.

        repeatable: asking again costs nothing (MQTT 5, where retained messages do not come again). Then young
        subscriptions are asked for again, in case the broker has crashed since and restored an older state.
        """
        unwanted = [name for name in self._filters if name not in wanted]
        if not present:
            return Difference(dict(wanted), [])
        if not known:
            return Difference(dict(wanted), unwanted)
        young_s = self._clock_s() - BROKER_SAVES_S
        return Difference(
            {name: qos for name, qos in wanted.items() if not self._is_settled(name, qos, repeatable, young_s)},
            unwanted,
        )

    def _is_settled(self, name: str, qos: int, repeatable: bool, young_s: float) -> bool:
        found = self._filters.get(name)
        return found is not None and found.qos == qos and not (repeatable and found.since_s > young_s)

    def confirm(self, granted: Mapping[str, int], *, same_session: bool) -> None:
        """The broker's session has exactly these. same_session: it is the one that is remembered."""
        now_s = self._clock_s()
        filters = {}
        for name, qos in granted.items():
            found = self._filters.get(name) if same_session else None
            filters[name] = found if found is not None and found.qos == qos else Subscription(qos, now_s)
        self._filters = filters
        self._confirmed = True
        self._save()

    # -- the file

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if {key: content[key] for key in self._about} == self._about:
                self._filters = {
                    str(name): Subscription(int(found["qos"]), float(found["since"]))
                    for name, found in content["filters"].items()
                }
                self._confirmed = content["confirmed"] is True
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._logger.warning(
                "what the broker's session has is not known: everything is subscribed to again",
                extra={"fields": {"file": str(self._path), "problem": f"{type(error).__name__}: {error}"}},
            )

    def _save(self) -> None:
        filters = {name: {"qos": found.qos, "since": round(found.since_s)} for name, found in self._filters.items()}
        content = {**self._about, "confirmed": self._confirmed, "filters": filters}
        try:
            self._path.parent.mkdir(exist_ok=True)
            replace(FILES, self._path, json.dumps(content, indent=1).encode() + b"\n")
            FILES.sync_directory(self._path.parent)
        except OSError as error:
            self._logger.warning(
                "cannot remember what the broker's session has: the next start subscribes to everything",
                extra={"fields": {"file": str(self._path), "problem": error.strerror or str(error)}},
            )
            self._drop()

    def _drop(self) -> None:
        """A file that could not be replaced must not say more than is true."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._logger.error(
                "a file that is out of date cannot be removed; remove it before the next start",
                extra={"fields": {"file": str(self._path), "problem": error.strerror or str(error)}},
            )
